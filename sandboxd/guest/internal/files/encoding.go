package files

import (
	"compress/gzip"
	"io"

	"github.com/klauspost/compress/zstd"
)

// mostWindow is the memory that unpacking may take, whatever the packed bytes ask for.
const mostWindow = 32 << 20

// Decoded reads what is packed by an encoding: "", "gzip" or "zstd". How much comes out is not bounded here, but by the disk.
func Decoded(encoding string, from io.Reader) (io.ReadCloser, error) {
	switch encoding {
	case "gzip":
		return gzip.NewReader(from)
	case "zstd":
		decoder, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(mostWindow), zstd.WithDecoderMaxMemory(mostWindow))
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	}
	return io.NopCloser(from), nil
}
