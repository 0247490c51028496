package metrics

import (
	"encoding/hex"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/wire"
)

const (
	stateListen = "0A"
	stateBound  = "07"
)

// Ports lists what listens, but for the guest's own port. Owners are looked up by socket inode where the kernel says it.
func Ports(own int) []wire.Port { return PortsAt(own, 0) }

// PortsAt is Ports of one number; 0: all.
func PortsAt(own, wanted int) []wire.Port {
	ports, inodes := listening(own, wanted)
	if len(ports) > 0 {
		addOwners(ports, inodes)
	}
	return ports
}

// Listens says whether anything listens at a port, or at any for 0. Much cheaper than to look up whose it is.
func Listens(own, wanted int) bool {
	ports, _ := listening(own, wanted)
	return len(ports) > 0
}

func listening(own, wanted int) ([]wire.Port, map[string]int) {
	ports := []wire.Port{}
	inodes := map[string]int{}
	for _, table := range []struct{ file, protocol, state string }{
		{"tcp", "tcp", stateListen}, {"tcp6", "tcp", stateListen}, {"udp", "udp", stateBound}, {"udp6", "udp", stateBound},
	} {
		text, err := os.ReadFile("/proc/net/" + table.file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != table.state {
				continue
			}
			address, ok := endpoint(fields[1])
			if !ok || (table.protocol == "tcp" && int(address.Port()) == own) || (wanted != 0 && int(address.Port()) != wanted) {
				continue
			}
			inodes[fields[9]] = len(ports)
			ports = append(ports, wire.Port{Port: int(address.Port()), Protocol: table.protocol, Address: address.Addr().String()})
		}
	}
	return ports, inodes
}

// endpoint reads `0100007F:1F90`: 32-bit words in the machine's byte order, then the port.
func endpoint(text string) (netip.AddrPort, bool) {
	addressText, portText, found := strings.Cut(text, ":")
	raw, err := hex.DecodeString(addressText)
	port, portErr := strconv.ParseUint(portText, 16, 16)
	if !found || err != nil || portErr != nil {
		return netip.AddrPort{}, false
	}
	for word := 0; word+4 <= len(raw); word += 4 {
		slices.Reverse(raw[word : word+4])
	}
	address, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address.Unmap(), uint16(port)), ok
}

// addOwners says whose sockets they are. The descriptors of a process are only for its own user to see, so they are looked
// at as that user: once for each user who has processes.
func addOwners(ports []wire.Port, inodes map[string]int) {
	type owner struct{ uid, gid uint32 }
	owned := map[owner][]int{}
	for _, pid := range pids() {
		var dir unix.Stat_t
		if unix.Stat("/proc/"+strconv.Itoa(pid), &dir) == nil {
			user := owner{dir.Uid, dir.Gid}
			owned[user] = append(owned[user], pid)
		}
	}
	for user, theirs := range owned {
		look := func() { addOwnersOf(theirs, ports, inodes) }
		if user.uid == uint32(os.Geteuid()) {
			look()
			continue
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: the thread ends with this function
			if setIDs(uintptr(user.uid), uintptr(user.gid)) {
				look()
			}
		}()
		<-done
	}
}

func setIDs(uid, gid uintptr) bool {
	if _, _, failed := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); failed != 0 {
		return false
	}
	_, _, failed := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid)
	return failed == 0
}

func addOwnersOf(pids []int, ports []wire.Port, inodes map[string]int) {
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			link, err := os.Readlink(dir + "/" + entry.Name())
			if err != nil || !strings.HasPrefix(link, "socket:[") {
				continue
			}
			if at, known := inodes[strings.Trim(link[len("socket:"):], "[]")]; known && ports[at].PID == nil {
				owner := pid
				ports[at].PID = &owner
			}
		}
	}
}
