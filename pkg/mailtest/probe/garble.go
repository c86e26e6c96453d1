package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"posthouse/pkg/addr"
	"posthouse/pkg/envelope"
	"posthouse/pkg/ipc"
	"posthouse/pkg/protocol/arrival"
	"posthouse/pkg/protocol/bounce"
	"posthouse/pkg/protocol/cleanup"
	"posthouse/pkg/protocol/deliver"
	"posthouse/pkg/protocol/delivery"
	"posthouse/pkg/protocol/queuectl"
	"posthouse/pkg/protocol/recipient"
	"posthouse/pkg/protocol/resolve"
	"posthouse/pkg/protocol/rewrite"
	"posthouse/pkg/protocol/showq"
	"posthouse/pkg/queueid"
)

// packet is a packet as it is sent, its flag octet included.
const packet = 32<<10 + 1

// sample returns what is spoken at a socket, and a request that its server takes.
func sample(socket string) (ipc.Protocol, *ipc.Message) {
	m := ipc.NewMessage()
	alice, err := addr.New("alice", "example.net")
	if err != nil {
		return ipc.Protocol{}, m
	}
	id := queueid.New(time.Now(), 1)
	rcpt := envelope.Recipient{Address: alice, Original: alice}
	e := envelope.Envelope{Arrival: time.Now(), Sender: alice, Recipients: []envelope.Recipient{rcpt}}
	switch path.Base(socket) {
	case "qmgr":
		arrival.Encode(m, []queueid.ID{id})
		return arrival.Protocol, m
	case "bounce":
		(&bounce.Request{Kind: bounce.Failure, QueueID: id, Envelope: e, Length: 10, Recipients: []bounce.Recipient{{Recipient: rcpt}}}).Encode(m)
		return bounce.Protocol, m
	case "cleanup", "submit":
		cleanup.EncodeBegin(m, &e)
		return cleanup.Protocol, m
	case "smtp", "virtual", "local":
		(&delivery.Request{QueueID: id, Transport: path.Base(socket), Sender: alice, Length: 10, Recipients: []envelope.Recipient{rcpt}}).Encode(m)
		return delivery.Protocol, m
	case "deliver":
		(&deliver.Request{Head: deliver.Head{Kind: deliver.Forward, User: "nobody"}, Files: []string{".forward"}}).Encode(m)
		return deliver.Protocol, m
	case "queue":
		queuectl.Request{Op: queuectl.Retry, IDs: []queueid.ID{id}}.Encode(m)
		return queuectl.Protocol, m
	case "dns":
		resolve.EncodeRequest(m, netip.MustParseAddr("192.0.2.1"))
		return resolve.Protocol, m
	case "recipient":
		recipient.EncodeRequest(m, []string{"alice", "nobody"})
		return recipient.Protocol, m
	case "rewrite":
		rewrite.Request{Op: rewrite.Verify, Addresses: []addr.Mailbox{alice}}.Encode(m)
		return rewrite.Protocol, m
	}
	return showq.Protocol, m // an empty request
}

// garble sends what no client would to servers, n times each, and once more than
// they can take: garble N SOCKET... It fails where a server does not greet.
func garble(n int, sockets []string) error {
	for _, socket := range sockets {
		if info, err := os.Stat(socket); err != nil {
			return err
		} else if info.Mode().Type() == fs.ModeNamedPipe {
			if err := os.WriteFile(socket, make([]byte, 100), 0); err != nil {
				return err
			}
			continue
		}
		g := &garbler{rand: rand.New(rand.NewPCG(1, 2))} // the same in every run
		_, m := sample(socket)
		for i := range n {
			// What becomes of the connection is for the server to say.
			err := g.connection(socket, func(c *net.UnixConn) error { return g.talk(c, m.Data()) })
			if err != nil {
				return fmt.Errorf("%s: connection %d: %w", socket, i, err)
			}
		}
		if err := g.connection(socket, flood); err != nil {
			return fmt.Errorf("%s: after a flood: %w", socket, err)
		}
		fmt.Println(socket, "garbled")
	}
	return nil
}

type garbler struct{ rand *rand.Rand }

// connection has talk use a new connection; an error is that of the greeting.
func (g *garbler) connection(socket string, talk func(*net.UnixConn) error) error {
	c, err := greeted(socket)
	if err != nil {
		return err
	}
	_ = talk(c)
	return c.Close()
}

func greeted(socket string) (*net.UnixConn, error) {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		if errors.Is(err, unix.EAGAIN) && time.Now().Before(end) {
			continue // its backlog is full
		}
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(end)
		if _, err = c.Read(make([]byte, packet)); err != nil {
			return nil, errors.Join(fmt.Errorf("greeting: %w", err), c.Close())
		}
		return c, nil
	}
}

// talk sends a few packets; good is what would be right.
func (g *garbler) talk(c *net.UnixConn, good []byte) error {
	for range 1 + g.rand.IntN(4) {
		var oob []byte
		if n := []int{0, 0, 0, 1, 1, 3, 200}[g.rand.IntN(7)]; n > 0 {
			files, err := g.files(n)
			for _, f := range files {
				defer f.Close()
			}
			if err != nil {
				return err
			}
			fds := make([]int, len(files))
			for i, f := range files {
				fds[i] = int(f.Fd())
			}
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := c.WriteMsgUnix(g.bytes(good), oob, nil); err != nil {
			return err
		}
	}
	return nil
}

// bytes returns a packet.
func (g *garbler) bytes(good []byte) []byte {
	b := append([]byte(nil), good...)
	switch g.rand.IntN(7) {
	case 0: // cut off
		return b[:g.rand.IntN(len(b)+1)]
	case 1: // some bits are others
		for range 1 + g.rand.IntN(8) {
			b[g.rand.IntN(len(b))] ^= 1 << g.rand.IntN(8)
		}
		return b
	case 2: // too long
		return append(b, g.noise(1+g.rand.IntN(packet))...)
	case 3: // a length, or whatever it hits
		i := g.rand.IntN(len(b))
		return append(append(b[:i:i], 0xff, 0xff, 0xff, 0xff), b[i:]...)
	case 4: // the first of several packets, that may not come
		b[0] = 1
		return b
	case 5:
		return g.noise(g.rand.IntN(400))
	}
	return g.noise(g.rand.IntN(3 * packet))
}

func (g *garbler) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.rand.Uint32())
	}
	if n > 0 {
		b[0] &= 1 // or the rest would not be looked at
	}
	return b
}

// passed is a file whose descriptors are passed, so that one that is kept is seen.
const passed = "/root/passed"

// files returns things that are no message.
func (g *garbler) files(n int) ([]*os.File, error) {
	paths := []string{passed, "/root", "/dev/zero", "/etc/shadow"}
	var files []*os.File
	for range n {
		name := paths[g.rand.IntN(len(paths))]
		flags := os.O_RDONLY
		if name == passed {
			flags = os.O_RDWR | os.O_CREATE
		}
		f, err := os.OpenFile(name, flags, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// flood sends one message that does not end.
func flood(c *net.UnixConn) error {
	b := make([]byte, packet)
	b[0] = 1
	for range 40 << 20 / packet {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	return errors.New("40 MiB were taken")
}

// silent connects n times to each socket, sends the beginning of a message on
// every second connection, and says nothing until standard input ends.
func silent(n int, sockets []string) error {
	for _, socket := range sockets {
		for i := range n {
			c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
			if errors.Is(err, unix.EAGAIN) {
				break // that is all that are taken
			}
			if err != nil {
				return err
			}
			defer c.Close()
			if i%2 > 0 {
				if _, err := c.Write([]byte{1, 0, 0}); err != nil && !errors.Is(err, unix.EPIPE) {
					return err
				}
			}
		}
	}
	fmt.Println("open")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// impostor takes the place of a server and misbehaves, with each connection in
// another way, whose name it prints.
func impostor(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		return err
	}
	fmt.Println("impostor at", socket)
	p, _ := sample(socket)
	for i := 0; ; i++ {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			way := misbehaviours[i%len(misbehaviours)]
			fmt.Println("misbehaves:", way)
			_ = c.SetDeadline(time.Now().Add(patience))
			misbehave(c, p, way) // the client may be gone
		}()
	}
}

var misbehaviours = strings.Fields("ends noise other-name other-version endless mute babbles floods descriptors")

func misbehave(c *net.UnixConn, p ipc.Protocol, way string) {
	g := &garbler{rand: rand.New(rand.NewPCG(1, 2))}
	conn, err := ipc.NewConn(c)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	switch way {
	case "ends":
		return
	case "noise":
		_, _ = c.Write(g.noise(100))
	case "other-name":
		_ = ipc.Greet(conn, ipc.Protocol{Name: p.Name + "2", Version: p.Version})
	case "other-version":
		_ = ipc.Greet(conn, ipc.Protocol{Name: p.Name, Version: p.Version + 1})
	case "endless":
		_ = flood(c)
		return
	default:
		_ = ipc.Greet(conn, p)
	}
	if _, err := c.Read(make([]byte, packet)); err != nil {
		return
	}
	switch way {
	case "babbles":
		_, _ = c.Write(g.noise(300))
	case "floods":
		for range 5 {
			_ = flood(c)
		}
	case "descriptors":
		if f, err := os.OpenFile(passed, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
			defer f.Close()
			_, _, _ = c.WriteMsgUnix(append([]byte{0}, make([]byte, 20)...), unix.UnixRights(int(f.Fd()), int(f.Fd())), nil)
		}
	}
}
