package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"posthouse/daemons/deliver/internal/become"
	"posthouse/daemons/deliver/internal/files"
	"posthouse/pkg/dsn"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/deliver"
)

// files has threads do what is done with files, and puts the answer into m.
func (s *service) files(ctx context.Context, r request, m *ipc.Message) error {
	what, err := deliver.DecodeRequest(r.msg)
	if err != nil {
		return &requestError{err}
	}
	// Who asks is not to be kept waiting, and nor is who stops this daemon.
	hurry := make(chan struct{})
	leave := sync.OnceFunc(func() { close(hurry) })
	defer context.AfterFunc(ctx, leave)()
	defer r.conn.OnEnd(leave)()
	job := job{s, what, r, hurry}
	reply, err := job.do(ctx)
	if err == nil && goesOn(what, reply) {
		job.what = otherwise(what)
		if reply, err = job.do(ctx); err == nil {
			reply.Else = true
		}
	}
	if err != nil {
		return err
	}
	reply.Encode(m)
	return nil
}

// goesOn reports whether what is said to be done else is still to be done.
func goesOn(r *deliver.Request, reply *deliver.Reply) bool {
	return r.Else != 0 && reply.Status.Class() == dsn.Success && !reply.Found && !reply.Else
}

func otherwise(r *deliver.Request) *deliver.Request {
	then := *r
	then.Kind, then.Else = r.Else, 0
	return &then
}

// job is a request that a thread does.
type job struct {
	*service
	what  *deliver.Request
	from  request
	hurry <-chan struct{} // closed when nobody wants to wait any more
}

// do does what is to be done, on a thread that is the user.
//
// One that does not come to an end is left alone. The end of the request takes the
// message from it, so that it does not deliver, at some later time, what has been
// deferred.
func (j *job) do(ctx context.Context) (*deliver.Reply, error) {
	id, err := j.identify(ctx, j.what.User, j.what.Kind)
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, placeTime)
	defer cancel()
	leave, err := j.places.take(wait, place{id.UID, inSpool(j.what.Kind)}, j.what.User)
	if err != nil {
		return nil, err
	}
	u := &files.User{Name: j.what.User, Home: id.account.Home, UID: id.UID, Sync: j.sync}
	var reply *deliver.Reply
	var wrong error
	done := make(chan error, 1) // nobody may be there
	j.become(id.Identity, func() error {
		reply, wrong = u.Do(j.what, j.from.file)
		if wrong == nil && goesOn(j.what, reply) && !inSpool(j.what.Else) { // it takes another identity there
			if reply, wrong = u.Do(otherwise(j.what), j.from.file); wrong == nil {
				reply.Else = true
			}
		}
		return nil
	}, func(err error) {
		leave()
		done <- err
	})
	if err := j.await(done); err != nil {
		return nil, err
	}
	if wrong != nil {
		return nil, &requestError{wrong}
	}
	return reply, nil
}

// await waits for the end of what a thread does.
func (j *job) await(done <-chan error) error {
	late := time.NewTimer(otherTime)
	defer late.Stop()
	hurry := j.hurry
	for {
		select {
		case err := <-done:
			return j.failure(err)
		case <-hurry:
			hurry = nil
			late.Reset(leaveTime)
		case <-late.C:
			return dsn.Errorf("4.3.0", "what is done as %s has not come to an end", j.what.User)
		}
	}
}

// failure is what the client is told of a thread that has done nothing, or not all.
func (j *job) failure(err error) error {
	var p *become.Panic
	if errors.As(err, &p) {
		j.log.Error(nil, "%s: %v: %s", j.what.User, p, p.Stack)
	}
	if err != nil {
		return dsn.Errorf("4.3.0", "nothing is done as %s: %v", j.what.User, err)
	}
	return nil
}
