// Package durable writes small files so that they survive a power cut: whoever opens the path later
// finds the old content or the new content whole, and after a successful return always the new.
//
// A file is written under a temporary name beside its final one, synced, renamed, and its directory is
// synced. A crash can leave the temporary file behind; its name begins with TempPrefix and nothing ever
// reads it.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// TempPrefix begins the name of every temporary file.
const TempPrefix = ".tmp-"

// WriteFile makes path a file with this content and exactly these permissions, replacing what is there.
// After an error that is not from the last step, the old file is untouched; an error of syncing the
// directory leaves it unknown which of the two a power cut would show.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	return ReplaceFile(path, data, perm, func(string) error { return nil })
}

// ReplaceFile is WriteFile for what must be right before it takes the place of the old file: check is
// given the name of the temporary file, which is synced. If it returns an error, nothing changes.
func ReplaceFile(path string, data []byte, perm os.FileMode, check func(tmp string) error) error {
	tmp, err := writeTemp(path, data, perm)
	if err != nil {
		return err
	}
	if err := check(tmp); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write file %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write file: %w", err)
	}
	return SyncDir(filepath.Dir(path))
}

// syncDir is SyncDir; tests make it fail.
var syncDir = SyncDir

// CreateFile is WriteFile for a path that must not exist yet; otherwise the error wraps fs.ErrExist and
// nothing changes. Of two that race, one wins. After any error the file is not there; only if syncing the directory has
// failed, or removing the file after that, may a power cut show it.
func CreateFile(path string, data []byte, perm os.FileMode) error {
	tmp, err := writeTemp(path, data, perm)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	err = os.Link(tmp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = reserve(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// reserve stands in for a hard link where the file system has none (FAT, some network mounts): it takes
// the name with an empty file, then renames the real one over it. A crash between leaves the empty file.
func reserve(tmp, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}

// writeTemp writes and syncs a temporary file beside path and returns its name.
func writeTemp(path string, data []byte, perm os.FileMode) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*")
	if err != nil {
		return "", fmt.Errorf("write file %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("write file %s: %w", path, err)
	}
	return f.Name(), nil
}

// MkdirAll makes dir and the parents it lacks, and syncs the parent of each directory that it made.
func MkdirAll(dir string, perm os.FileMode) error {
	st, err := os.Stat(dir)
	if err == nil {
		if !st.IsDir() {
			return fmt.Errorf("make directory %s: a file is in the way", dir)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	return SyncDir(parent)
}
