package main

import "testing"

// simKept are seeds that have found something, with what it was. What a seed means
// changes with what is drawn from it (sim_plan_test.go): whoever changes that looks for
// others, by undoing what has mended it.
var simKept = []struct {
	seed  uint64
	found string
}{
	{16, "a retried message comes back from outside of memory: who has just failed was tried again"},
	{453, "a deletion that waited for a delivery was forgotten for a command after it"},
	{962, "what the administrator wanted of a message in memory was forgotten by a stop"},
	{1980, "the clock was set forward: the file that cleanup was writing was removed, and then said to be accepted"},
	{186, "a flush failed twice: outcomes that a process before had written were not written again"},
	{807763, "a deletion was noted of a message that an old notice had in memory, and not of the one on hold"},
	{702576, "after a power cut the clock was behind: the content of a message that had never been accepted was not checked"},
	{20261130244180, "what was retried by command, came back and had to wait beyond memory was tried for all of its recipients, who had just failed, too"},
	{20261472436, "a message that owed a notification was due at once: while no flush worked, qmgr tried it over and over"},
	{20261157010, "of the model: a process that crashes while it is about to stop has crashed then, and not later"},
	{1005060, "a deletion was noted of a message that was being written, and forgotten"},
}

// TestSimulationKept plays the schedules that have found something.
func TestSimulationKept(t *testing.T) {
	g := newStage(t)
	for _, k := range simKept {
		if s := g.play(t, k.seed); len(s.broken) > 0 {
			t.Errorf("seed %d, which has found this: %s: %s", k.seed, k.found, s.broken[0])
		}
	}
}
