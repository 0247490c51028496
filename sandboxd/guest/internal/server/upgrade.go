package server

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"sandlot.dev/guest/internal/wire"
)

// asks says whether a request wants its connection turned into a stream of that protocol.
func asks(r *http.Request, protocol string) *wire.Problem {
	if !strings.EqualFold(r.Header.Get("Upgrade"), protocol) || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		return wire.Fail("malformed_request", "this needs an upgrade to %s", protocol)
	}
	return nil
}

// upgrade takes the connection out of HTTP. What the peer sent already is in the reader.
func upgrade(w http.ResponseWriter, protocol string) (net.Conn, *bufio.Reader, *wire.Problem) {
	connection, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, wire.Fail("internal", "upgrade: %v", err)
	}
	_ = connection.SetDeadline(time.Time{})
	_, err = fmt.Fprintf(connection, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	if err != nil {
		connection.Close()
		return nil, nil, nil
	}
	return connection, both.Reader, nil
}
