// Package wire holds what crosses the wire between node and guest: frames, messages, problems. It opens nothing.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
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
	KindStdinAck  Kind = 0x08
	KindError     Kind = 0x09
)

// The kinds the guest is spoken to in.
const (
	KindStdin      Kind = 0x41
	KindStdinClose Kind = 0x42
	KindResize     Kind = 0x43
	KindSignal     Kind = 0x44
)

const (
	// FramesMediaType names a stream of frames.
	FramesMediaType = "application/vnd.sandlot.frames"
	// MaxPayload is the most a frame carries.
	MaxPayload = 65536
	// MaxInput is the most a frame of input carries.
	MaxInput = 262144
	// HeaderBytes is the length of a frame before its payload.
	HeaderBytes = 24
)

// Frame is one frame of input, taken apart.
type Frame struct {
	Kind    Kind
	Seq     uint64
	Payload []byte
}

// ReadFrame reads one frame of input. An error other than io.EOF means that what comes is not frames, or stopped in one.
func ReadFrame(from io.Reader) (Frame, error) {
	var header [HeaderBytes]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return Frame{}, err
	}
	length := binary.BigEndian.Uint32(header[4:])
	if length > MaxInput || header[1] != 0 || header[2] != 0 || header[3] != 0 {
		return Frame{}, errors.New("not a frame of input")
	}
	frame := Frame{Kind: Kind(header[0]), Seq: binary.BigEndian.Uint64(header[8:]), Payload: make([]byte, length)}
	if _, err := io.ReadFull(from, frame.Payload); err != nil {
		return Frame{}, io.ErrUnexpectedEOF
	}
	return frame, nil
}

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
