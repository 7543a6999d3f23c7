package main

import "io/fs"

// links returns how many names a file has, as far as this system says.
func links(fs.FileInfo) uint64 { return 1 }

// own does nothing here: files are shared by access lists.
func own(string, fs.FileInfo) error { return nil }
