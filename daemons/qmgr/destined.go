package main

import (
	"errors"
	"io/fs"
	"strings"

	"posthouse/pkg/queue"
	"posthouse/pkg/queueid"
)

// destined carries it out with what is deferred for a domain. What is in memory, or
// asked for already, is on its way. What fails again while it is at work is not
// tried twice, but where the index has not been whole.
func (o *operation) destined(domain string) {
	buckets, _, err := o.spool.deferred()
	if err != nil {
		o.failed(err)
	}
	sizes := o.index.sizes()
	for _, name := range buckets {
		if o.isCut() {
			return
		}
		if isAsked(name) {
			continue
		}
		p := place{queue.Deferred, name}
		ids, whole := o.index.find(name, sizes[name], keyOf(domain))
		switch {
		case !whole:
			o.look(p, o.searched(p, domain))
		case len(ids) > 0:
			o.look(p, o.spool.in(p, func(d *queue.Directory) error {
				var buf [4 << 10]byte
				for _, id := range ids {
					if o.isCut() {
						return errStopping
					}
					if q, err := d.Look(id, buf[:]); err == nil && waitsFor(q, domain) {
						o.at(p, d, id)
					}
				}
				return nil
			}))
		}
	}
}

// searched looks through a bucket of which the index may lack something, and makes
// that whole.
func (o *operation) searched(p place, domain string) error {
	s, all := o.index.begin(p.bucket), true
	var buf [4 << 10]byte
	err := o.spool.names(p, func(d *queue.Directory, id queueid.ID) error {
		if o.isCut() {
			return errStopping
		}
		q, err := d.Look(id, buf[:])
		if err != nil {
			all = all && (errors.Is(err, fs.ErrNotExist) || isDamage(err)) // which the next attempt finds
			return nil
		}
		o.index.add(p.bucket, id, keysOf(q))
		if waitsFor(q, domain) {
			o.at(p, d, id)
		}
		return nil
	})
	o.index.end(p.bucket, s, all && err == nil)
	return err
}

// waitsFor reports whether somebody in domain has not got the message.
func waitsFor(q *queue.Message, domain string) bool {
	for i := range q.Recipients {
		if q.Recipients[i].Pending() && strings.EqualFold(q.Envelope.Recipients[i].Address.Domain(), domain) {
			return true
		}
	}
	return false
}
