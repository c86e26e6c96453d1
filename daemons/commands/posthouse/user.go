package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	osuser "os/user"

	"posthouse/pkg/addr"
	"posthouse/pkg/cli"
	"posthouse/pkg/config"
	"posthouse/pkg/users"
)

// mailOwner is the one owner of all virtual mailboxes.
const mailOwner = "_ph-virtual"

// tableGroup may read the table of users: rewrite is in it.
const tableGroup = "_ph-users"

// noPasswordHash is the hash of no password. The scheme has to be there: without
// one Dovecot takes it for a hash up to 2.3, and for the password from 2.4 on.
const noPasswordHash = "{CRYPT}!"

// mailLocation tells Dovecot where the mail is: first up to 2.3, then from 2.4
// on. Each takes its own and leaves the rest alone.
const mailLocation = "userdb_mail=maildir:~/Maildir userdb_mail_driver=maildir userdb_mail_path=~/Maildir userdb_mail_inbox_path=~/Maildir"

func userCommand(dir *string) *cli.Command {
	file := func() *users.File {
		f := users.NewFile(filepath.Join(config.TablesDir(*dir), "users"))
		if g, err := osuser.LookupGroup(tableGroup); err == nil {
			if gid, err := strconv.Atoi(g.Gid); err == nil {
				f.ReadBy(gid)
			}
		}
		return f
	}
	return &cli.Command{Name: "user", Summary: "virtual users", Subs: []*cli.Command{
		addUserCommand(dir, file), listUsersCommand(file),
		{
			Name: "delete", Args: "ADDRESS", Summary: "remove a virtual user; the mailbox stays",
			Run: oneUser(func(_ context.Context, _ cli.Streams, m addr.Mailbox) error { return file().Delete(m) }),
		},
		{
			Name: "passwd", Args: "ADDRESS", Summary: "give a virtual user another password, read from standard input",
			Run: oneUser(func(ctx context.Context, std cli.Streams, m addr.Mailbox) error {
				hash, err := readPassword(ctx, std)
				if err != nil {
					return err
				}
				return file().SetPassword(m, hash)
			}),
		},
	}}
}

// oneUser makes a Run of what is done to one address.
func oneUser(do func(context.Context, cli.Streams, addr.Mailbox) error) func(context.Context, cli.Streams, []string) int {
	return func(ctx context.Context, std cli.Streams, args []string) int {
		if len(args) != 1 {
			return std.Errorf(cli.Usage, "posthouse user: give one address")
		}
		m, err := addr.Parse(args[0])
		if err != nil {
			return std.Errorf(cli.Usage, "%v", err)
		}
		if m.Domain() == "" {
			return std.Errorf(cli.Usage, "%s has no domain", m)
		}
		if err := do(ctx, std, m); err != nil {
			return std.Errorf(userStatus(err), "%v", err)
		}
		return cli.OK
	}
}

// userStatus is the exit status for an error.
func userStatus(err error) int {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return cli.NoPerm
	case errors.Is(err, users.ErrNone), errors.Is(err, users.ErrExists):
		return cli.NoUser
	case errors.Is(err, context.Canceled):
		return cli.TempFail
	case errors.As(err, new(configError)):
		return cli.Config
	case errors.As(err, new(*fs.PathError)), errors.As(err, new(*os.LinkError)): // the disk is full, or read-only
		return cli.IOErr
	}
	return cli.DataErr
}

// configError is that of the configuration.
type configError struct{ error }

// reachable reports whether mail to m would come to m. For the agent virtual what
// follows a delimiter is an extension, and the mail goes to who is named before
// it.
func reachable(m addr.Mailbox, cfg *config.Config) error {
	if base, _ := m.SplitExtension(cfg.RecipientDelimiter); base != m && strings.HasPrefix(cfg.Routes.Virtual, "virtual:") {
		return fmt.Errorf("mail to %s goes to %s: see recipient_delimiter", m, base)
	}
	return nil
}

func addUserCommand(dir *string, file func() *users.File) *cli.Command {
	var noPassword bool
	return &cli.Command{
		Name: "add", Args: "ADDRESS", Summary: "add a virtual user, with a password that is read from standard input",
		Flags: func(set *flag.FlagSet) {
			set.BoolVar(&noPassword, "no-password", false, "add a user who cannot log in, but gets mail")
		},
		Run: oneUser(func(ctx context.Context, std cli.Streams, m addr.Mailbox) error {
			cfg, err := config.Load(*dir)
			if err != nil {
				return configError{err}
			}
			domain := strings.ToLower(m.Domain())
			if _, ok := cfg.Domains.Virtual[domain]; !ok {
				return fmt.Errorf("%s is not a virtual domain: add it to domains.virtual in %s first", domain, filepath.Join(*dir, "posthouse.yaml"))
			}
			if err := reachable(m, cfg); err != nil {
				return err
			}
			owner, err := osuser.Lookup(mailOwner)
			if err != nil {
				return fmt.Errorf("owner of the mail store: %w", err)
			}
			m = m.Fold()
			u := users.User{
				Address: m, UID: owner.Uid, GID: owner.Gid, Password: noPasswordHash, Extra: mailLocation,
				Home: filepath.Join(cfg.Virtual.Base, m.Domain(), m.Local()),
			}
			if !noPassword {
				if u.Password, err = readPassword(ctx, std); err != nil {
					return err
				}
			}
			return file().Add(u)
		}),
	}
}

func listUsersCommand(file func() *users.File) *cli.Command {
	var asJSON bool
	return &cli.Command{
		Name: "list", Summary: "list virtual users",
		Flags: func(set *flag.FlagSet) { set.BoolVar(&asJSON, "json", false, "one JSON object a line") },
		Run: func(_ context.Context, std cli.Streams, _ []string) int {
			list, err := file().List()
			if err != nil {
				return std.Errorf(userStatus(err), "%v", err)
			}
			for _, u := range list {
				var err error
				if asJSON {
					err = json.NewEncoder(std.Out).Encode(map[string]string{"address": u.Address.String(), "home": u.Home})
				} else {
					_, err = fmt.Fprintln(std.Out, u.Address)
				}
				if err != nil {
					return std.Errorf(cli.IOErr, "%v", err)
				}
			}
			return cli.OK
		},
	}
}
