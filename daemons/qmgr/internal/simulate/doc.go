// Package simulate has tests that play a day's traffic through the scheduler, in
// modelled time, and through the same scheduler by Postfix's rules. "make
// simulate" plays a whole day; nothing of it is in a program.
//
// What is modelled: ten million messages from thousands of senders, whose rate
// goes up and down over the day; lists; one sender who floods; a hundred thousand
// destinations, few of which get most of the mail. Some are slow, some dead, some
// refuse more than a few connections, and one of the most popular becomes slow for
// six hours. What is not: the cost of reading and writing the queue.
//
// Postfix's rules are those of its documentation and source: one order of jobs for
// all senders, by the time they were loaded; messages in memory up to a limit,
// whoever they are for; deferred mail looked at every five minutes, with new mail
// in turn; no chance in the time between attempts.
package simulate
