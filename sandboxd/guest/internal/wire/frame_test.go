package wire

import (
	"bytes"
	"testing"
)

func TestAFrameIsLaidOutAsPromised(t *testing.T) {
	got := AppendFrame(nil, KindStderr, 0x0102030405060708, 0x1112131415161718, []byte("hi"))
	want := []byte{2, 0, 0, 0, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 'h', 'i'}
	if !bytes.Equal(got, want) {
		t.Fatalf("% x", got)
	}
}

func TestLostNamesItsBytes(t *testing.T) {
	got := AppendLost(nil, 7, 12)
	if got[0] != byte(KindLost) || string(got[HeaderBytes:]) != `{"lost_bytes":12}` {
		t.Fatalf("%q", got)
	}
}
