package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

const (
	// mostReplacements is how often an entry that is put back by somebody else is removed again.
	mostReplacements = 16
	// mostHoles is the largest file that is made of a sparse entry: its holes cost time, not space.
	mostHoles = 1 << 40
)

// Extraction says how an archive is unpacked.
type Extraction struct {
	Format    string
	Strip     int
	Overwrite bool
}

type unpacker struct {
	Extraction
	context context.Context
	root    int
	counted wire.Extracted
	later   []late
	buffer  []byte

	// The directory of the last entry: it is still the one that was reached without a link, whatever its name now means.
	lastName string
	last     int
}

// late is what a directory is given when everything in it is there.
type late struct {
	name string
	mode uint32
	at   time.Time
}

// Unpack extracts an archive below a directory, which is made if it is not there. Nothing lands outside, or is reached
// through a link that was there or came with the archive; what is refused is `unsafe_archive`, and not undone. Everything
// belongs to the user. Errors of the body are returned as they are.
func Unpack(
	ctx context.Context, user identity.User, full string, extraction Extraction, body io.Reader,
) (counted wire.Extracted, bodyErr error, problem *wire.Problem) {
	u := &unpacker{Extraction: extraction, context: ctx, last: -1, buffer: make([]byte, copyBytes)}
	source := &watched{from: body}
	err := as(user, func() (err error) {
		if err := makeParents(strings.TrimRight(full, "/") + "/"); err != nil {
			return err
		}
		if u.root, err = open(full, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
		defer unix.Close(u.root)
		defer u.forget()
		return u.all(source)
	})
	switch {
	case source.failed != nil:
		return u.counted, source.failed, nil
	case err != nil:
		problem = explain(full, err)
		for name, count := range map[string]int64{
			"files": u.counted.Files, "directories": u.counted.Directories, "symlinks": u.counted.Symlinks, "bytes": u.counted.Bytes,
		} {
			problem.With("extracted_"+name, count)
		}
	}
	return u.counted, nil, problem
}

func (u *unpacker) all(source io.Reader) error {
	body, err := Decoded(encodings[u.Format], source)
	if err != nil {
		return unreadable(err)
	}
	defer body.Close()
	reader := tar.NewReader(body)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return unreadable(err)
		}
		if err := u.entry(header, reader); err != nil {
			if problem := (*wire.Problem)(nil); errors.As(err, &problem) {
				return err
			}
			return explain(header.Name, err).With("entry", strings.ToValidUTF8(header.Name, "\uFFFD"))
		}
	}
	u.settle()
	// What follows the archive's end is read too: only then was the body whole.
	if _, err := copyInto(io.Discard, body); err != nil {
		return unreadable(err)
	}
	_, err = copyInto(io.Discard, source)
	return err
}

var encodings = map[string]string{"tar": "", "tar.gz": "gzip", "tar.zst": "zstd"}

func unreadable(err error) error {
	return wire.Fail("malformed_request", "the archive cannot be read: %v", err)
}

func unsafeEntry(name, format string, arguments ...any) error {
	shown := strings.ToValidUTF8(name, "\uFFFD")
	return wire.Fail("unsafe_archive", format, arguments...).With("entry", shown)
}

func (u *unpacker) entry(header *tar.Header, content io.Reader) error {
	if err := u.context.Err(); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		return unsafeEntry(header.Name, "%q is a device", header.Name)
	}
	name, err := u.inside(header.Name, header.Name)
	if err != nil || name == "" {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return u.directory(header, name)
	case tar.TypeSymlink:
		return u.symlink(header, name)
	case tar.TypeLink:
		return u.link(header, name)
	case tar.TypeFifo:
		return u.put(header.Name, name, func(dir int, last string) error {
			return unix.Mknodat(dir, last, unix.S_IFIFO|modeOf(header), 0)
		})
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have the second
		return u.file(header, name, content)
	}
	return unsafeEntry(header.Name, "%q is of an unknown kind", header.Name)
}

// inside returns a name as a path below the target, stripped; "" for what is stripped away whole, and for the target.
func (u *unpacker) inside(entry, name string) (string, error) {
	if path.IsAbs(name) {
		return "", unsafeEntry(entry, "%q is absolute", name)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", unsafeEntry(entry, "%q leads outside", name)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) <= u.Strip {
		return "", nil
	}
	kept := strings.Join(parts[u.Strip:], "/")
	if problem := Check(kept); problem != nil {
		return "", problem
	}
	return kept, nil
}

// into opens the directory an entry goes into, making what is missing; nothing on the way is a link.
func (u *unpacker) into(entry, name string) (int, error) {
	if name == "." {
		return u.root, nil
	}
	if name == u.lastName && u.last >= 0 {
		return u.last, nil
	}
	fd, err := below(u.root, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		fd, err = u.make(name)
	}
	if err != nil {
		return -1, throughLink(entry, err)
	}
	u.forget()
	u.lastName, u.last = name, fd
	return fd, nil
}

func throughLink(entry string, err error) error {
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return unsafeEntry(entry, "%q would go through a link", entry)
	}
	return err
}

func (u *unpacker) make(name string) (int, error) {
	for end := 1; end <= len(name); end++ {
		if end < len(name) && name[end] != '/' {
			continue
		}
		dir, last := path.Split(name[:end])
		at, err := below(u.root, path.Clean("./"+dir), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(at, last, newDirMode)
		unix.Close(at)
		if err == nil {
			u.counted.Directories++
		} else if !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
	}
	return below(u.root, name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

func (u *unpacker) forget() {
	if u.last >= 0 {
		unix.Close(u.last)
		u.last = -1
	}
}

func (u *unpacker) directory(header *tar.Header, name string) error {
	before := u.counted.Directories
	if _, err := u.into(header.Name, name); err != nil {
		return err
	}
	if u.counted.Directories > before || u.Overwrite {
		u.later = append(u.later, late{name, modeOf(header), header.ModTime})
	}
	return nil
}

// put makes something new under a name, in the place of what is there if that may be replaced. Nothing is ever followed.
func (u *unpacker) put(entry, name string, create func(dir int, last string) error) error {
	dir, err := u.into(entry, path.Dir(name))
	if err != nil {
		return err
	}
	last := path.Base(name)
	for range mostReplacements {
		if err = create(dir, last); !errors.Is(err, unix.EEXIST) {
			break
		}
		if !u.Overwrite {
			return wire.Fail("already_exists", "%s is there already", name).With("entry", strings.ToValidUTF8(entry, "\uFFFD"))
		}
		if removed := unix.Unlinkat(dir, last, 0); removed != nil && !errors.Is(removed, unix.ENOENT) {
			return removed
		}
	}
	if err == nil {
		u.counted.Files++
	}
	return err
}

func (u *unpacker) symlink(header *tar.Header, name string) error {
	err := u.put(header.Name, name, func(dir int, last string) error { return unix.Symlinkat(header.Linkname, dir, last) })
	if err == nil {
		u.counted.Files--
		u.counted.Symlinks++
	}
	return err
}

// link makes a second name of a file that is below the target already.
func (u *unpacker) link(header *tar.Header, name string) error {
	target, err := u.inside(header.Name, header.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return unsafeEntry(header.Name, "%q is a link to what is not in the archive", header.Name)
	}
	from, err := below(u.root, path.Dir(target), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return throughLink(header.Name, err)
	}
	defer unix.Close(from)
	if target == name {
		return nil
	}
	return u.put(header.Name, name, func(dir int, last string) error {
		return unix.Linkat(from, path.Base(target), dir, last, 0)
	})
}

func (u *unpacker) file(header *tar.Header, name string, content io.Reader) error {
	sparse := header.Typeflag == tar.TypeGNUSparse || slices.ContainsFunc([]string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size"},
		func(key string) bool { return header.PAXRecords[key] != "" })
	if sparse && header.Size > mostHoles {
		return unsafeEntry(header.Name, "%q is a sparse file of %d bytes", header.Name, header.Size)
	}
	fd := -1
	err := u.put(header.Name, name, func(dir int, last string) (err error) {
		fd, err = unix.Openat(dir, last, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.fill(fd, content, sparse, header.Size); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, modeOf(header)); err != nil {
		return err
	}
	setTime(ownPath(fd), header.ModTime)
	return nil
}

var zeros = make([]byte, copyBytes)

// fill writes content. Of a sparse file, what is zero is left out.
func (u *unpacker) fill(fd int, content io.Reader, sparse bool, size int64) error {
	for {
		count, err := content.Read(u.buffer)
		if failed := u.write(fd, u.buffer[:count], sparse); failed != nil {
			return failed
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return unreadable(err)
		}
	}
	if sparse {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

func (u *unpacker) write(fd int, piece []byte, sparse bool) error {
	if err := u.context.Err(); err != nil {
		return err
	}
	u.counted.Bytes += int64(len(piece))
	if sparse && bytes.Equal(piece, zeros[:len(piece)]) {
		_, err := unix.Seek(fd, int64(len(piece)), io.SeekCurrent)
		return err
	}
	return writeAll(fd, piece)
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		count, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data = data[count:]
	}
	return nil
}

// settle gives directories their modes and times, the innermost first. What is no longer there does not matter.
func (u *unpacker) settle() {
	for _, each := range slices.Backward(u.later) {
		fd, err := below(u.root, each.name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		_ = unix.Chmod(ownPath(fd), each.mode)
		setTime(ownPath(fd), each.at)
		unix.Close(fd)
	}
}

// modeOf leaves out what would let others act as the user.
func modeOf(header *tar.Header) uint32 { return uint32(header.Mode) & 0o1777 }

func setTime(at string, modified time.Time) {
	if modified.IsZero() {
		return
	}
	if times, err := unix.TimeToTimespec(modified); err == nil {
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, times}, 0)
	}
}
