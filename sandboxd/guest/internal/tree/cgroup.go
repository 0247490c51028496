package tree

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	pidsRoot   = cgroupRoot + "/pids"
	// A tree started while others use up the limit gets this share of it, so that the sandbox can still be worked in.
	leastShare = 8
	// Limits are set in steps of this share, so that a group used again rarely needs another one.
	stepShare = 16
	maxSpare  = 16
)

// Cgroups makes trees that are `pids` cgroups: membership survives setsid, double forks and a cleared environment.
//
// In gVisor a parent cgroup is not charged for its children, so each tree has a limit of its own: what was left of the
// sandbox's when it started. Groups are used again, because making one is on the way of every start.
type Cgroups struct {
	dir   string
	tasks int
	limit atomic.Int64

	mu    sync.Mutex
	made  int
	spare []*group
}

// group is one directory of the hierarchy, with the files that every start writes to held open.
type group struct {
	dir   string
	tasks int
	max   int
	limit int64
}

// MountCgroups makes the hierarchy reachable, mounting it when the bundle did not.
func MountCgroups() (*Cgroups, error) {
	if _, err := os.Stat(pidsRoot + "/tasks"); err != nil {
		if err := mountPids(); err != nil {
			return nil, err
		}
	}
	tasks, err := openWrite(pidsRoot + "/tasks")
	if err != nil {
		return nil, fmt.Errorf("open pids cgroup: %w", err)
	}
	dir := pidsRoot + "/sandlot"
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return &Cgroups{dir: dir, tasks: tasks}, nil
}

func mountPids() error {
	if err := unix.Mount("none", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", cgroupRoot, err)
	}
	if err := os.Mkdir(pidsRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup", pidsRoot, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		return fmt.Errorf("mount %s: %w", pidsRoot, err)
	}
	return nil
}

// SetLimit bounds trees made from now on.
func (c *Cgroups) SetLimit(processes int) { c.limit.Store(int64(processes)) }

// New makes an empty tree.
func (c *Cgroups) New() (Tree, error) {
	chosen := c.take()
	if chosen != nil && chosen.restrict(c.left()) == nil {
		return &cgroup{forest: c, group: chosen}, nil
	}
	chosen.discard()
	chosen, err := c.makeGroup()
	if err != nil {
		return nil, err
	}
	return &cgroup{forest: c, group: chosen}, nil
}

func (c *Cgroups) take() *group {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.spare) - 1
	if last < 0 {
		return nil
	}
	chosen := c.spare[last]
	c.spare = c.spare[:last]
	return chosen
}

func (c *Cgroups) give(empty *group) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spare) >= maxSpare {
		return false
	}
	c.spare = append(c.spare, empty)
	return true
}

// left is what a tree started now may grow to; 0: no limit.
func (c *Cgroups) left() int64 {
	limit := c.limit.Load()
	if limit <= 0 {
		return 0
	}
	var system unix.Sysinfo_t
	_ = unix.Sysinfo(&system)
	left := max(limit-int64(system.Procs), limit/leastShare, 1)
	if step := limit / stepShare; step > 0 && left > step {
		left -= left % step
	}
	return left
}

func (c *Cgroups) makeGroup() (*group, error) {
	c.mu.Lock()
	c.made++
	dir := c.dir + "/" + strconv.Itoa(c.made)
	c.mu.Unlock()
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	fresh := &group{dir: dir, tasks: -1, max: -1}
	var err error
	if fresh.tasks, err = openWrite(dir + "/tasks"); err == nil {
		if fresh.max, err = openWrite(dir + "/pids.max"); err == nil {
			err = fresh.restrict(c.left())
		}
	}
	if err != nil {
		fresh.discard()
		return nil, fmt.Errorf("set up cgroup: %w", err)
	}
	return fresh, nil
}

func openWrite(path string) (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) }

func (g *group) restrict(limit int64) error {
	if g.limit == limit {
		return nil
	}
	text := "max"
	if limit > 0 {
		text = strconv.FormatInt(limit, 10)
	}
	if _, err := unix.Pwrite(g.max, []byte(text), 0); err != nil {
		return err
	}
	g.limit = limit
	return nil
}

// discard removes the directory; false while it has members.
func (g *group) discard() bool {
	if g == nil {
		return true
	}
	if err := unix.Rmdir(g.dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return false
	}
	for _, file := range []int{g.tasks, g.max} {
		if file >= 0 {
			unix.Close(file)
		}
	}
	return true
}

// cgroup is one tree in one group, until it is removed: from then on the group may be another's.
type cgroup struct {
	forest *Cgroups
	mu     sync.Mutex
	group  *group
	gone   bool
}

// Enter makes a new group when the chosen one does not work: root inside may have removed it.
func (t *cgroup) Enter() (func(), error) {
	self := []byte(strconv.Itoa(unix.Gettid()))
	if _, err := unix.Pwrite(t.group.tasks, self, 0); err != nil {
		fresh, makeErr := t.forest.makeGroup()
		if makeErr != nil {
			return nil, errors.Join(err, makeErr)
		}
		t.group.discard()
		t.group = fresh
		if _, err := unix.Pwrite(fresh.tasks, self, 0); err != nil {
			return nil, fmt.Errorf("join cgroup: %w", err)
		}
	}
	return func() { _, _ = unix.Pwrite(t.forest.tasks, self, 0) }, nil
}

func (t *cgroup) Started(int) {}

func (t *cgroup) Members() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.members()
}

func (t *cgroup) members() []int {
	if t.gone {
		return nil
	}
	return readNumbers(t.group.dir + "/cgroup.procs")
}

func (t *cgroup) Freeze() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.gone {
		_, _ = unix.Pwrite(t.group.max, []byte("0"), 0)
		t.group.limit = -1
	}
}

// Remove gives the group back. One that still counts somebody, though it has no members, is not used again.
func (t *cgroup) Remove() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.members()) > 0 {
		return false
	}
	if !t.gone {
		count, err := os.ReadFile(t.group.dir + "/pids.current")
		clean := err == nil && strings.TrimSpace(string(count)) == "0"
		t.gone = clean && t.forest.give(t.group) || t.group.discard()
	}
	return t.gone
}
