// Package wire holds what crosses the wire between node and guest: frames, messages, problems. It does no I/O.
package wire

import (
	"encoding/binary"
	"encoding/json"
)

// Kind says what a frame carries.
type Kind byte

// The kinds the guest speaks.
const (
	KindStdout    Kind = 0x01
	KindStderr    Kind = 0x02
	KindTerminal  Kind = 0x03
	KindExit      Kind = 0x04
	KindLost      Kind = 0x05
	KindKeepalive Kind = 0x06
	KindAttached  Kind = 0x07
)

const (
	// FramesMediaType names a stream of frames.
	FramesMediaType = "application/vnd.sandlot.frames"
	// MaxPayload is the most a frame carries.
	MaxPayload = 65536
	// HeaderBytes is the length of a frame before its payload.
	HeaderBytes = 24
)

// AppendHeader appends the header of a frame whose payload follows.
func AppendHeader(dst []byte, kind Kind, length int, seq uint64, timeUS int64) []byte {
	dst = append(dst, byte(kind), 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(length))
	dst = binary.BigEndian.AppendUint64(dst, seq)
	return binary.BigEndian.AppendUint64(dst, uint64(timeUS))
}

// AppendFrame appends a whole frame. The payload is at most MaxPayload bytes.
func AppendFrame(dst []byte, kind Kind, seq uint64, timeUS int64, payload []byte) []byte {
	return append(AppendHeader(dst, kind, len(payload), seq, timeUS), payload...)
}

// AppendLost appends the frame that names what fell out of the ring.
func AppendLost(dst []byte, seq, lost uint64) []byte {
	payload, _ := json.Marshal(map[string]uint64{"lost_bytes": lost})
	return AppendFrame(dst, KindLost, seq, 0, payload)
}
