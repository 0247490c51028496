package metrics

import (
	"net"
	"os"
	"testing"
)

func TestOwnPortIsSeenWithItsOwner(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network]
		listener, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		port := listener.Addr().(*net.TCPAddr).Port
		found := false
		for _, one := range Ports(0) {
			if one.Port == port && one.PID != nil && *one.PID == os.Getpid() && one.Address == listener.Addr().(*net.TCPAddr).IP.String() {
				found = true
			}
		}
		if !found {
			t.Errorf("%s %d: %+v", network, port, Ports(0))
		}
		for _, one := range Ports(port) {
			if one.Port == port && one.Protocol == "tcp" {
				t.Error("the guest's own port is shown")
			}
		}
		listener.Close()
	}
}

func TestReadingsAreSane(t *testing.T) {
	all := Read()
	if all.Processes < 1 || all.MemoryUsedBytes <= 0 || all.DiskUsedBytes > all.DiskLimitBytes {
		t.Fatalf("%+v", all)
	}
	if _, peak := Process(os.Getpid()); peak <= 0 {
		t.Fatal("no memory")
	}
	if cpu, peak := Process(1 << 30); cpu != 0 || peak != 0 {
		t.Fatal("of a process that is not there")
	}
}
