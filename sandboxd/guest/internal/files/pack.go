package files

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// errShrank says that a file has less content than its entry promised.
var errShrank = errors.New("a file became shorter while it was read")

type inode struct{ dev, ino uint64 }

type packer struct {
	names   *Names
	exclude Globs
	tar     *tar.Writer
	linked  map[inode]string
	buffer  []byte
}

// Pack writes an archive of a directory's content, or of one file, as the user may read it. `begin` is called when nothing
// can be refused any more. An error afterwards means that what was written is not whole. Sockets and devices are left out.
func Pack(
	user identity.User, names *Names, full, format string, exclude Globs, begin func(), to io.Writer,
) (problem *wire.Problem, failed error) {
	err := as(user, func() error {
		fd, err := open(full, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var status unix.Stat_t
		if err := unix.Fstat(fd, &status); err != nil {
			return err
		}
		opened := -1
		switch status.Mode & unix.S_IFMT {
		case unix.S_IFDIR, unix.S_IFREG:
			if opened, err = reopen(fd, unix.O_RDONLY); err != nil {
				return err
			}
			defer unix.Close(opened)
		default:
			return errNotAFile
		}
		name := path.Base(tidy(full, fd))
		begin()
		failed = pack(names, exclude, format, to, func(p *packer) error {
			if status.Mode&unix.S_IFMT == unix.S_IFDIR {
				return p.directory(opened, "", 0)
			}
			return p.content(opened, name, &status)
		})
		return nil
	})
	if err != nil {
		return explain(full, err), nil
	}
	return nil, failed
}

func pack(names *Names, exclude Globs, format string, to io.Writer, walk func(*packer) error) error {
	packed, err := compressed(format, to)
	if err != nil {
		return err
	}
	p := &packer{names, exclude, tar.NewWriter(packed), map[inode]string{}, make([]byte, copyBytes)}
	if err := walk(p); err != nil {
		return err
	}
	if err := p.tar.Close(); err != nil {
		return err
	}
	return packed.Close()
}

func compressed(format string, to io.Writer) (io.WriteCloser, error) {
	switch format {
	case "tar.gz":
		return gzip.NewWriterLevel(to, gzip.BestSpeed)
	case "tar.zst":
		return zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	}
	return plain{to}, nil
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

func (p *packer) directory(dir int, prefix string, depth int) error {
	if depth > deepest {
		return errTooDeep
	}
	entries, err := names(dir)
	if err != nil {
		return err
	}
	for _, name := range entries {
		shown := prefix + name
		if p.exclude.match(shown) {
			continue
		}
		if err := p.entry(dir, name, shown, depth); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func (p *packer) entry(dir int, name, shown string, depth int) error {
	var status unix.Stat_t
	if err := unix.Fstatat(dir, name, &status, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch status.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fd, err := openDirectory(dir, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := p.header(shown+"/", tar.TypeDir, "", 0, &status); err != nil {
			return err
		}
		return p.directory(fd, shown+"/", depth+1)
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Fstat(fd, &status); err != nil {
			return err
		}
		return p.content(fd, shown, &status)
	case unix.S_IFLNK:
		target, err := readLink(dir, name)
		if err != nil {
			return err
		}
		return p.header(shown, tar.TypeSymlink, target, 0, &status)
	case unix.S_IFIFO:
		return p.header(shown, tar.TypeFifo, "", 0, &status)
	}
	return nil
}

// content writes a file: the second name of one that is in the archive already only as a link to it.
func (p *packer) content(fd int, shown string, status *unix.Stat_t) error {
	if status.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.ENOENT // it has just become something else
	}
	if status.Nlink > 1 {
		key := inode{status.Dev, status.Ino}
		if first, known := p.linked[key]; known {
			return p.header(shown, tar.TypeLink, first, 0, status)
		}
		p.linked[key] = shown
	}
	if err := p.header(shown, tar.TypeReg, "", status.Size, status); err != nil {
		return err
	}
	for left := status.Size; left > 0; {
		count, err := unix.Read(fd, p.buffer[:min(left, int64(len(p.buffer)))])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if count <= 0 {
			return errShrank
		}
		if _, err := p.tar.Write(p.buffer[:count]); err != nil {
			return err
		}
		left -= int64(count)
	}
	return nil
}

func (p *packer) header(name string, kind byte, target string, size int64, status *unix.Stat_t) error {
	return p.tar.WriteHeader(&tar.Header{
		Name: name, Typeflag: kind, Linkname: target, Size: size, Mode: int64(status.Mode & 0o7777),
		Uid: int(status.Uid), Gid: int(status.Gid), Uname: p.names.user(status.Uid), Gname: p.names.group(status.Gid),
		ModTime: time.Unix(status.Mtim.Sec, 0),
	})
}
