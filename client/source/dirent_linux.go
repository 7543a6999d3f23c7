package source

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// direntHead is what stands before the name in a directory entry of getdents64: u64 inode, s64 offset,
// u16 length of the whole, u8 type, in the machine's byte order.
const direntHead = 8 + 8 + 2 + 1

// direntNames appends the names in b, which a read of a directory returned, but for "." and "..". Entries
// with inode 0 are names like others: on Linux some file systems in user space number nothing, and
// unix.ParseDirent would leave those out.
func direntNames(b []byte, to []string) ([]string, error) {
	for len(b) > 0 {
		if len(b) < direntHead {
			return to, errors.New("its list is malformed")
		}
		n := int(binary.NativeEndian.Uint16(b[16:]))
		if n <= direntHead || n > len(b) {
			return to, errors.New("its list is malformed")
		}
		name, _, ended := bytes.Cut(b[direntHead:n], []byte{0})
		if !ended || len(name) == 0 {
			return to, errors.New("its list is malformed")
		}
		if s := string(name); s != "." && s != ".." {
			to = append(to, s)
		}
		b = b[n:]
	}
	return to, nil
}
