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
	if err != nil {
		return err
	}
	reply.Encode(m)
	return nil
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
	leave, err := j.places.take(wait, place{id.UID, inSpool(j.what.Kind) || inSpool(j.what.Else)}, j.what.User)
	if err != nil {
		return nil, err
	}
	var next *identity // looked up here: on the thread it would be done as the user
	var trouble error
	if j.what.Else != 0 {
		next, trouble = j.identify(ctx, j.what.User, j.what.Else)
	}
	var reply *deliver.Reply
	done := make(chan error, 1) // nobody may be there
	j.become(id.Identity, func(t *become.Thread) error {
		var otherwise bool
		var err error
		user := j.user(id)
		defer user.Close()
		if reply, otherwise, err = j.first(user); !otherwise || err != nil {
			return err
		}
		if trouble != nil {
			return trouble
		}
		reply, err = j.otherwise(t, user, id, next)
		return err
	}, func(err error) {
		leave()
		done <- err
	})
	if err := j.await(done); err != nil {
		return nil, err
	}
	return reply, nil
}

// private is what is the service's own (PrivateTmp=), and goes with it.
var private = []string{"/tmp", "/var/tmp"}

func (j *job) user(id *identity) *files.User {
	return &files.User{Name: j.what.User, Home: id.account.Home, UID: id.UID, Sync: j.sync, Private: private}
}

// first does what is asked for, and reports whether what is to be done else is still
// to be done.
func (j *job) first(user *files.User) (reply *deliver.Reply, otherwise bool, err error) {
	reply, err = user.Do(j.what, j.from.file)
	if err != nil {
		return nil, false, &requestError{err}
	}
	return reply, j.what.Else != 0 && !reply.Found && reply.Status.Class() == dsn.Success, nil
}

// otherwise does what is to be done as there is no .forward file, as next.
func (j *job) otherwise(t *become.Thread, user *files.User, id, next *identity) (*deliver.Reply, error) {
	if next.UID != id.UID || next.GID != id.GID || next.account.Home != id.account.Home {
		return nil, errors.New("the account has just changed")
	}
	if inSpool(j.what.Else) {
		if err := j.regroup(t, next.Groups); err != nil {
			return nil, err
		}
	}
	then := *j.what
	then.Kind, then.Else = j.what.Else, 0
	reply, err := user.Do(&then, j.from.file)
	if err != nil {
		return nil, &requestError{err}
	}
	reply.Else = true
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
	var (
		p      *become.Panic
		wrong  *requestError
		status *dsn.Error
	)
	switch {
	case err == nil, errors.As(err, &wrong), errors.As(err, &status):
		return err
	case errors.As(err, &p):
		j.log.Error(nil, "%s: %v: %s", j.what.User, p, p.Stack)
	}
	return dsn.Errorf("4.3.0", "nothing is done as %s: %v", j.what.User, err)
}
