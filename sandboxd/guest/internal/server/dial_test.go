package server

import (
	"io"
	"net"
	"testing"
	"time"
)

// pair is a TCP connection, both ends.
func pair(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return accepted.(*net.TCPConn), dialled.(*net.TCPConn)
}

func joined(t *testing.T) (local, remote *net.TCPConn, over chan struct{}) {
	t.Helper()
	nearLocal, local := pair(t)
	nearRemote, remote := pair(t)
	over = make(chan struct{})
	go func() {
		join(nearLocal, nearRemote, nearRemote)
		nearLocal.Close()
		nearRemote.Close()
		close(over)
	}()
	return local, remote, over
}

func within(t *testing.T, over chan struct{}) {
	t.Helper()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("the join does not end")
	}
}

func TestBothEndsMayEnd(t *testing.T) {
	local, remote, over := joined(t)
	_, _ = remote.Write([]byte("question"))
	_ = remote.CloseWrite()
	if asked, err := io.ReadAll(local); err != nil || string(asked) != "question" {
		t.Fatalf("%q %v", asked, err)
	}
	_, _ = local.Write([]byte("answer"))
	_ = local.CloseWrite()
	if said, err := io.ReadAll(remote); err != nil || string(said) != "answer" {
		t.Fatalf("%q %v", said, err)
	}
	within(t, over)
}

func TestABreakEndsBoth(t *testing.T) {
	for name, half := range map[string]bool{"at once": false, "behind its last word": true} {
		t.Run(name, func(t *testing.T) {
			local, remote, over := joined(t)
			if half {
				_ = remote.CloseWrite()
				if _, err := io.ReadAll(local); err != nil {
					t.Fatal(err)
				}
			}
			_ = remote.SetLinger(0)
			remote.Close()
			within(t, over)
			if _, err := local.Read(make([]byte, 1)); err == nil {
				t.Fatal("the other end goes on")
			}
		})
	}
}
