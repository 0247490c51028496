package files

import (
	"bytes"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// mostUnsized is read of a file that says it has no size but has content, as those of /proc do.
const mostUnsized = 4 << 20

// Reading is a file open for reading: what it promised when it was opened.
type Reading struct {
	Info wire.FileInfo
	Size int64

	file    *os.File
	content []byte
}

// Read opens a regular file with the user's rights.
func Read(user identity.User, names *Names, full string) (*Reading, *wire.Problem) {
	reading := &Reading{}
	err := as(user, func() error { return reading.open(names, full) })
	if err != nil {
		return nil, explain(full, err)
	}
	return reading, nil
}

// open looks before it opens: opening a device or a pipe would already do something.
func (r *Reading) open(names *Names, full string) error {
	fd, err := open(full, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if r.Info, err = describe(names, tidy(full, fd), fd); err != nil {
		return err
	}
	switch r.Info.Type {
	case "file":
	case "directory":
		return unix.EISDIR
	default:
		return errNotAFile
	}
	opened, err := reopen(fd, unix.O_RDONLY)
	if err != nil {
		return err
	}
	r.file, r.Size = os.NewFile(uintptr(opened), full), r.Info.SizeBytes
	if r.Size > 0 {
		return nil
	}
	if r.content, err = io.ReadAll(io.LimitReader(r.file, mostUnsized)); err != nil {
		r.file.Close()
		return err
	}
	r.Size, r.Info.SizeBytes = int64(len(r.content)), int64(len(r.content))
	return nil
}

// from returns the content from a position on. It may hold more than was promised, or less.
func (r *Reading) from(offset int64) (io.Reader, error) {
	if r.content != nil {
		return bytes.NewReader(r.content[offset:]), nil
	}
	_, err := r.file.Seek(offset, io.SeekStart)
	return r.file, err
}

// Send writes so many bytes from a position on. By large pieces of its own: the sandbox's kernel is slower at handing a
// file to a connection by itself.
func (r *Reading) Send(to io.Writer, offset, length int64) error {
	content, err := r.from(offset)
	if err != nil {
		return err
	}
	sent, err := copyInto(to, io.LimitReader(content, length))
	if err == nil && sent < length {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Close lets the file go.
func (r *Reading) Close() { r.file.Close() }
