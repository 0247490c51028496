package files

import (
	"context"
	"errors"
	"maps"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

const (
	watchKeepalive = 15 * time.Second
	// pairPatience is how long the first half of a rename waits for the second.
	pairPatience = 20 * time.Millisecond
	// mostWatched is how many directories one watch holds.
	mostWatched = 65536
	// mostBatches of events wait for whoever listens.
	mostBatches = 256

	watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_EXCL_UNLINK
)

// watched directories by their descriptor of inotify; names are below the root, "" is the root itself.
type watchedDir struct {
	name string
	// announced are entries found when the directory was added: their own event may still come, or not.
	announced map[string]bool
}

type watcher struct {
	base      string
	recursive bool
	isFile    bool
	emit      func(wire.FileEvent) error

	notify    *os.File
	notifyFD  int
	dirs      map[int]*watchedDir
	moved     *half
	overflown bool
	batches   chan []byte
	dropped   atomic.Bool
}

// half is a rename of which only the old name is known yet.
type half struct {
	cookie uint32
	name   string
	isDir  bool
}

// Watch tells what happens to a file, or in a directory, until the context ends or nobody listens. `begin` is called when
// everything that is there is watched; events are complete from then on, or an `overflow` says that they are not.
// `flush` is called when there is nothing more to say for now.
func Watch(
	ctx context.Context, user identity.User, full string, recursive bool,
	begin func(), emit func(wire.FileEvent) error, flush func() error,
) *wire.Problem {
	w := &watcher{recursive: recursive, emit: emit, dirs: map[int]*watchedDir{}, batches: make(chan []byte, mostBatches)}
	err := as(user, func() error {
		if err := w.open(full); err != nil {
			return err
		}
		defer w.notify.Close()
		stop := context.AfterFunc(ctx, func() { _ = w.notify.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		begin()
		if w.overflown && w.overflow() != nil {
			return nil
		}
		w.follow(ctx, flush)
		return nil
	})
	if err != nil {
		return explain(full, err)
	}
	return nil
}

// open holds nothing open of what it watches: only then its end is told.
func (w *watcher) open(full string) error {
	root, err := open(full, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	w.base = tidy(full, root)
	var status unix.Stat_t
	if err := unix.Fstat(root, &status); err != nil {
		return err
	}
	w.isFile = status.Mode&unix.S_IFMT != unix.S_IFDIR
	if w.notifyFD, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return err
	}
	w.notify = os.NewFile(uintptr(w.notifyFD), "inotify")
	if err = w.add(root, "", false); err != nil {
		w.notify.Close()
	}
	return err
}

// add watches what a descriptor stands for, and all directories below it. What is in them by then is announced, if asked
// for: it came before anybody looked.
func (w *watcher) add(fd int, name string, announce bool) error {
	if len(w.dirs) >= mostWatched {
		w.overflown = true
		return nil
	}
	// The kernel asks for this right, but not every one does.
	if err := unix.Access(ownPath(fd), unix.R_OK); err != nil {
		return err
	}
	number, err := unix.InotifyAddWatch(w.notifyFD, ownPath(fd), watchMask)
	if errors.Is(err, unix.ENOSPC) {
		w.overflown = true
		return nil
	}
	if err != nil {
		return err
	}
	if name == "." {
		name = ""
	}
	dir := &watchedDir{name: name}
	w.dirs[number] = dir
	if w.isFile || (!w.recursive && !announce) {
		return nil
	}
	opened, err := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(opened)
	entries, err := names(opened)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := w.found(opened, dir, entry, announce); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) found(opened int, dir *watchedDir, entry string, announce bool) error {
	var status unix.Stat_t
	if unix.Fstatat(opened, entry, &status, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return nil
	}
	isDir := status.Mode&unix.S_IFMT == unix.S_IFDIR
	shown := path.Join(dir.name, entry)
	if announce {
		if dir.announced == nil {
			dir.announced = map[string]bool{}
		}
		dir.announced[entry] = true
		if err := w.say("create", shown, isDir); err != nil {
			return err
		}
	}
	if isDir && w.recursive {
		w.addBelow(shown, announce)
	}
	return nil
}

// addBelow watches a directory by its name. One that has gone, or that the user may not read, is none of this watch's.
func (w *watcher) addBelow(name string, announce bool) {
	root, err := open(w.base, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	fd, err := below(root, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = w.add(fd, name, announce)
}

// take reads what happens as it happens, whether or not somebody listens as fast: the runtime would keep it all. What
// nobody has taken in time is dropped, and that it was is remembered.
func (w *watcher) take(ctx context.Context) {
	defer close(w.batches)
	for ctx.Err() == nil {
		buffer := make([]byte, 16*1024)
		count, err := w.notify.Read(buffer)
		if err != nil {
			return
		}
		select {
		case w.batches <- buffer[:count]:
		default:
			w.dropped.Store(true)
		}
	}
}

func (w *watcher) follow(ctx context.Context, flush func() error) {
	silence := time.NewTimer(watchKeepalive)
	defer silence.Stop()
	go w.take(ctx)
	for {
		if flush() != nil {
			return
		}
		patience := watchKeepalive
		if w.moved != nil {
			patience = pairPatience
		}
		silence.Reset(patience)
		var err error
		select {
		case data, open := <-w.batches:
			if !open {
				return
			}
			err = w.batch(data)
		case <-silence.C:
			err = w.quiet()
		}
		if err != nil {
			return
		}
	}
}

// quiet is when nothing came for a while.
func (w *watcher) quiet() error {
	if w.moved != nil {
		return w.alone()
	}
	return w.emit(wire.FileEvent{Kind: "keepalive"})
}

func (w *watcher) batch(data []byte) error {
	for len(data) >= unix.SizeofInotifyEvent {
		event := *(*unix.InotifyEvent)(unsafe.Pointer(&data[0]))
		end := unix.SizeofInotifyEvent + int(event.Len)
		if end > len(data) {
			return nil
		}
		entry := strings.TrimRight(string(data[unix.SizeofInotifyEvent:end]), "\x00")
		data = data[end:]
		if err := w.one(&event, entry); err != nil {
			return err
		}
	}
	if len(w.batches) == 0 && w.dropped.Swap(false) {
		w.lookAgain()
	}
	if w.overflown {
		return w.overflow()
	}
	return nil
}

func (w *watcher) one(event *unix.InotifyEvent, entry string) error {
	if event.Mask&unix.IN_Q_OVERFLOW != 0 {
		w.lookAgain()
		return nil
	}
	if w.moved != nil && (event.Mask&unix.IN_MOVED_TO == 0 || event.Cookie != w.moved.cookie) {
		if err := w.alone(); err != nil {
			return err
		}
	}
	dir, known := w.dirs[int(event.Wd)]
	if !known {
		return nil
	}
	if event.Mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, int(event.Wd))
		return nil
	}
	if entry == "" {
		return w.itself(event, dir)
	}
	return w.within(event, dir, entry)
}

// itself is about what is watched: a directory below the root has an entry in its parent, which tells the same.
func (w *watcher) itself(event *unix.InotifyEvent, dir *watchedDir) error {
	if dir.name != "" {
		return nil
	}
	switch {
	case event.Mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
		return w.say("remove", "", !w.isFile)
	case event.Mask&unix.IN_MODIFY != 0:
		return w.say("write", "", !w.isFile)
	case event.Mask&unix.IN_ATTRIB != 0 && !w.gone():
		return w.say("chmod", "", !w.isFile)
	}
	return nil
}

// gone tells whether the root has been removed: its count of names changes first, which is no change of its own.
func (w *watcher) gone() bool {
	var status unix.Stat_t
	return errors.Is(unix.Lstat(w.base, &status), unix.ENOENT)
}

func (w *watcher) within(event *unix.InotifyEvent, dir *watchedDir, entry string) error {
	shown, isDir := path.Join(dir.name, entry), event.Mask&unix.IN_ISDIR != 0
	announced := dir.announced[entry]
	switch {
	case event.Mask&unix.IN_CREATE != 0:
		delete(dir.announced, entry)
		if announced {
			return nil
		}
		return w.appeared(shown, isDir)
	case event.Mask&unix.IN_MOVED_TO != 0:
		delete(dir.announced, entry)
		if first := w.moved; first != nil {
			w.moved = nil
			return w.renamed(first, shown)
		}
		if announced {
			return nil
		}
		return w.appeared(shown, isDir)
	case event.Mask&unix.IN_MOVED_FROM != 0:
		delete(dir.announced, entry)
		w.moved = &half{event.Cookie, shown, isDir}
		return nil
	case event.Mask&unix.IN_DELETE != 0:
		delete(dir.announced, entry)
		return w.say("remove", shown, isDir)
	case event.Mask&unix.IN_MODIFY != 0:
		return w.say("write", shown, isDir)
	case event.Mask&unix.IN_ATTRIB != 0:
		return w.say("chmod", shown, isDir)
	}
	return nil
}

func (w *watcher) appeared(name string, isDir bool) error {
	if err := w.say("create", name, isDir); err != nil {
		return err
	}
	if isDir && w.recursive {
		w.addBelow(name, true)
	}
	return nil
}

// renamed tells of a whole rename, and knows what is below a directory by its new name from now on.
func (w *watcher) renamed(from *half, to string) error {
	if from.isDir {
		for _, dir := range w.dirs {
			if rest, below := strings.CutPrefix(dir.name+"/", from.name+"/"); below {
				dir.name = path.Join(to, rest)
			}
		}
	}
	if kind := appearing(from.name); kind != "" {
		return w.say(kind, to, from.isDir)
	}
	event := wire.FileEvent{Kind: "rename", IsDirectory: &from.isDir, At: wire.Stamp(time.Now())}
	event.Path, event.PathBase64 = textOrBytes(path.Join(w.base, from.name))
	event.To, event.ToBase64 = textOrBytes(path.Join(w.base, to))
	return w.emit(event)
}

// alone tells of a rename whose new name lies elsewhere: here it is a removal.
func (w *watcher) alone() error {
	from := w.moved
	w.moved = nil
	if from.isDir {
		for number, dir := range maps.Clone(w.dirs) {
			if strings.HasPrefix(dir.name+"/", from.name+"/") {
				_, _ = unix.InotifyRmWatch(w.notifyFD, uint32(number))
				delete(w.dirs, number)
			}
		}
	}
	return w.say("remove", from.name, from.isDir)
}

// lookAgain says that events were lost, and finds the directories that were made meanwhile.
func (w *watcher) lookAgain() {
	w.moved = nil
	w.overflown = true
	if w.recursive && !w.isFile {
		w.addBelow(".", false)
	}
}

func (w *watcher) overflow() error {
	w.overflown = false
	return w.say("overflow", "", !w.isFile)
}

// say tells of one change. What an upload writes aside is none until it has its name.
func (w *watcher) say(kind, name string, isDir bool) error {
	if appearing(name) != "" {
		return nil
	}
	event := wire.FileEvent{Kind: kind, IsDirectory: &isDir, At: wire.Stamp(time.Now())}
	event.Path, event.PathBase64 = textOrBytes(path.Join(w.base, name))
	return w.emit(event)
}
