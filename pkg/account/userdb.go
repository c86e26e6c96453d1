package account

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The varlink interface of systemd-userdbd: https://systemd.io/USER_GROUP_API.
const (
	multiplexer = "io.systemd.Multiplexer"
	userdb      = "io.systemd.UserDatabase."
	noRecord    = userdb + "NoRecordFound"
)

// maxAnswer bounds one answer, in octets.
const maxAnswer = 1 << 20

type question struct {
	Method     string `json:"method"`
	Parameters struct {
		UserName  string `json:"userName,omitempty"`
		GroupName string `json:"groupName,omitempty"`
		Service   string `json:"service"`
	} `json:"parameters"`
	More bool `json:"more,omitempty"`
}

type answer struct {
	Error      string `json:"error"`
	Continues  bool   `json:"continues"`
	Parameters struct {
		GroupName string          `json:"groupName"` // of a membership
		Record    json.RawMessage `json:"record"`
	} `json:"parameters"`
}

// record is what is wanted of the record of a user or a group.
type record struct {
	UserName  string  `json:"userName"`
	GroupName string  `json:"groupName"`
	UID       *uint32 `json:"uid"`
	GID       *uint32 `json:"gid"`
	Home      string  `json:"homeDirectory"`
	Shell     string  `json:"shell"`
}

// varlink is a connection to systemd-userdbd.
type varlink struct {
	out io.Writer
	in  *bufio.Reader
}

func fromUserdb(ctx context.Context, socket, name string) (*Account, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // all has been read
	// A context without a deadline of its own has that of Lookup.
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	v := &varlink{conn, bufio.NewReader(conn)}
	return v.account(name)
}

func (v *varlink) account(name string) (*Account, error) {
	q := question{Method: userdb + "GetUserRecord"}
	q.Parameters.UserName = name
	u, err := v.record(q)
	if err != nil {
		return nil, err
	}
	if u.UID == nil {
		return nil, errors.New("a record without uid")
	}
	if u.GID == nil {
		u.GID = u.UID // the default of user records
	}
	a := &Account{Name: u.UserName, UID: *u.UID, GID: *u.GID, Home: u.Home, Shell: u.Shell}
	if a.Home == "" {
		a.Home = "/home/" + name // the default of user records
	}
	a.Groups, err = v.groups(name)
	return a, err
}

// groups returns those that the user is a member of.
func (v *varlink) groups(user string) ([]uint32, error) {
	q := question{Method: userdb + "GetMemberships", More: true}
	q.Parameters.UserName = user
	var names []string
	err := v.ask(q, func(a *answer) error {
		names = append(names, a.Parameters.GroupName)
		if len(names) > maxGroups {
			return fmt.Errorf("over %d groups", maxGroups)
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	var ids []uint32
	for _, name := range names {
		q := question{Method: userdb + "GetGroupRecord"}
		q.Parameters.GroupName = name
		g, err := v.record(q)
		if errors.Is(err, ErrNone) {
			continue // a member of what is not there has no right by it
		}
		if err == nil && (g.GID == nil || g.GroupName != name) {
			err = errors.New("a record of another group, or without gid")
		}
		if err != nil {
			return nil, fmt.Errorf("group %.100q: %w", name, err)
		}
		ids = append(ids, *g.GID)
	}
	return ids, nil
}

// record asks for one record.
func (v *varlink) record(q question) (*record, error) {
	var r *record
	err := v.ask(q, func(a *answer) error {
		if r != nil {
			return errors.New("more than one record")
		}
		r = new(record)
		return json.Unmarshal(a.Parameters.Record, r)
	})
	return r, err
}

// ask calls f with each answer to q.
func (v *varlink) ask(q question, f func(*answer) error) error {
	q.Parameters.Service = multiplexer
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	if _, err := v.out.Write(append(b, 0)); err != nil {
		return err
	}
	for {
		b, err := v.message()
		if err != nil {
			return err
		}
		var a answer
		if err := json.Unmarshal(b, &a); err != nil {
			return err
		}
		switch {
		case a.Error == noRecord:
			return ErrNone
		case a.Error != "":
			return fmt.Errorf("userdb: %.100q", a.Error)
		}
		if err := f(&a); err != nil {
			return err
		}
		if !a.Continues {
			return nil
		}
	}
}

// message reads one message, which ends in a NUL.
func (v *varlink) message() ([]byte, error) {
	var b bytes.Buffer
	for b.Len() <= maxAnswer {
		piece, err := v.in.ReadSlice(0)
		b.Write(piece)
		switch {
		case err == nil:
			return b.Bytes()[:b.Len()-1], nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
	return nil, fmt.Errorf("an answer of over %d octets", maxAnswer)
}
