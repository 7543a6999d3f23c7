package room

import (
	"io"
	"os"
	"syscall"
)

// usage is what a file system says of itself.
type usage struct {
	used, free       int64 // bytes; free is what an ordinary process may still write
	files, freeFiles int64 // zero if they are not counted
}

func statfs(path string) (usage, error) {
	var st syscall.Statfs_t
	for {
		err := syscall.Statfs(path, &st)
		if err == nil {
			break
		}
		if err != syscall.EINTR {
			return usage{}, err
		}
	}
	block := int64(st.Bsize)
	return usage{
		used: (int64(st.Blocks) - int64(st.Bfree)) * block, free: int64(st.Bavail) * block,
		files: int64(st.Files), freeFiles: int64(st.Ffree),
	}, nil
}

// write gives f size bytes by writing them.
func write(f *os.File, size int64) error {
	_, err := io.CopyN(f, junk{}, size)
	return err
}

// junk reads as bytes that do not compress to nothing.
type junk struct{}

func (junk) Read(p []byte) (int, error) {
	x := uint32(len(p)) | 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return len(p), nil
}
