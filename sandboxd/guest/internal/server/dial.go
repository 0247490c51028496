package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/wire"
)

const (
	dialProtocol = "sandlot.tcp.v1"
	dialPatience = 5 * time.Second
	lastPort     = 65535
)

// dial joins the request's connection to a port of this sandbox's loopback. The guest's own port is refused.
func (s *Server) dial(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "port")
	port := q.count("port")
	if q.problem != nil {
		return q.problem
	}
	if port == nil || *port < 1 || *port > lastPort || int(*port) == s.settings.Port {
		return wire.Fail("invalid_request", "port is a number from 1 to %d, and not the guest's own", lastPort)
	}
	if problem := asks(r, dialProtocol); problem != nil {
		return problem
	}
	within, cancel := context.WithTimeout(r.Context(), dialPatience)
	defer cancel()
	local, err := new(net.Dialer).DialContext(within, "tcp4", net.JoinHostPort("127.0.0.1", strconv.FormatInt(*port, 10)))
	if err != nil {
		return wire.Fail("port_not_listening", "port %d: %v", *port, err).With("port", *port)
	}
	defer local.Close()
	remote, early, problem := upgrade(w, dialProtocol)
	if remote == nil {
		return problem
	}
	defer remote.Close()
	join(local, remote, early)
	return nil
}

// join moves bytes both ways until both ends have said that nothing more comes, or one broke.
func join(local, remote net.Conn, early io.Reader) {
	ended, broken := make(chan error, 2), make(chan struct{})
	go func() {
		err := pass(local, early)
		ended <- err
		if err == nil && breaks(remote) {
			close(broken)
		}
	}()
	go func() { ended <- pass(remote, local) }()
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				continue
			}
		case <-broken:
		}
		// Broken, not ended: whoever still reads must not take it for an end.
		reset(local)
		reset(remote)
		return
	}
}

func pass(into net.Conn, from io.Reader) error {
	if _, err := io.Copy(into, from); err != nil {
		return err
	}
	return into.(interface{ CloseWrite() error }).CloseWrite()
}

// breaks waits behind the end of what a connection says until it breaks. False when it is closed here. Without it nobody
// would notice a peer that said its last word and then went away, as long as the other end is silent too.
func breaks(connection net.Conn) bool {
	raw, err := connection.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	// The poller tells of changes only, so this sleeps although there is always an end to be read.
	return raw.Read(func(fd uintptr) bool {
		broken, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return err != nil || broken != 0
	}) == nil
}

func reset(connection net.Conn) {
	if one, ok := connection.(interface{ SetLinger(sec int) error }); ok {
		_ = one.SetLinger(0)
	}
}
