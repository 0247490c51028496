// Command guest is the agent inside every sandbox: its PID 1, and the only thing the node talks to there.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/privilege"
	"sandlot.dev/guest/internal/process"
	"sandlot.dev/guest/internal/server"
	"sandlot.dev/guest/internal/spawn"
	"sandlot.dev/guest/internal/tree"
)

// version is set by the build.
var version = "development"

type arguments struct {
	listen, peer, tokenSHA256 string
	backstopSeconds           float64
	native, showVersion       bool
}

func main() {
	var given arguments
	flag.StringVar(&given.listen, "listen", "0.0.0.0:49979", "address to listen on")
	flag.StringVar(&given.peer, "peer", "", "the only address to answer")
	flag.StringVar(&given.tokenSHA256, "token-sha256", "", "hash of the token, in hexadecimal")
	flag.Float64Var(&given.backstopSeconds, "backstop-seconds", 0, "end after this long (0: never)")
	flag.BoolVar(&given.native, "native", false, "run outside a sandbox, for tests")
	flag.BoolVar(&given.showVersion, "version", false, "print the version and exit")
	flag.Parse()
	if given.showVersion {
		fmt.Println(version)
		return
	}
	if err := run(given); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(given arguments) error {
	peer, err := netip.ParseAddr(given.peer)
	if err != nil {
		return fmt.Errorf("--peer: %w", err)
	}
	listen, err := netip.ParseAddrPort(given.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	syscall.Umask(0o022)
	forest, err := prepare(given.native)
	if err != nil {
		return err
	}
	spawner, err := spawn.NewSpawner()
	if err != nil {
		return err
	}
	users := identity.NewDirectory("/etc")
	guest, err := server.New(server.Settings{
		Version: version, TokenSHA256: given.tokenSHA256, Port: int(listen.Port()), Native: given.native,
		Backstop: time.Duration(given.backstopSeconds * float64(time.Second)),
	}, process.NewTable(spawner, forest), users)
	if err != nil {
		return err
	}
	listener, err := server.Listen(given.listen, peer)
	if err != nil {
		return err
	}
	if given.native {
		fmt.Println(listener.Addr())
	}
	return guest.HTTP().Serve(listener)
}

// prepare does the duties of an init, and says how trees of processes are held together.
func prepare(native bool) (tree.Forest, error) {
	if native {
		return tree.Sessions{}, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if os.Getpid() != 1 {
		return nil, errors.New("only PID 1 of a sandbox runs without --native")
	}
	// Taken, not ignored: what is ignored would be ignored by every process started from here.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	if err := os.Mkdir("/tmp", 0o777); err == nil {
		_ = os.Chmod("/tmp", os.ModeSticky|0o777)
	}
	forest, err := tree.MountCgroups()
	if err != nil {
		return nil, err
	}
	if err := privilege.Limit(0); err != nil {
		return nil, err
	}
	return forest, privilege.Confine()
}
