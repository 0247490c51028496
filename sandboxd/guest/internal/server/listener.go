package server

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Calls share some two hundred; each attachment and each dialled stream has one of its own.
const maxConnections = 1024

// gate accepts connections of one peer only, and a bounded number of them.
type gate struct {
	net.Listener
	peer  netip.Addr
	slots chan struct{}
}

// Listen opens the guest's port for one peer.
func Listen(address string, peer netip.Addr) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}}
	listener, err := config.Listen(context.Background(), "tcp4", address)
	if err != nil {
		return nil, err
	}
	return &gate{Listener: listener, peer: peer, slots: make(chan struct{}, maxConnections)}, nil
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		connection, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		accepted, ok := connection.(*net.TCPConn)
		remote, known := connection.RemoteAddr().(*net.TCPAddr)
		if !ok || !known || remote.AddrPort().Addr().Unmap() != g.peer {
			connection.Close()
			continue
		}
		select {
		case g.slots <- struct{}{}:
			return &guarded{TCPConn: accepted, gate: g}, nil
		default:
			connection.Close()
		}
	}
}

type guarded struct {
	*net.TCPConn
	gate *gate
	once sync.Once
}

func (c *guarded) Close() error {
	c.once.Do(func() { <-c.gate.slots })
	return c.TCPConn.Close()
}
