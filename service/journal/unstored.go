package journal

// Unstored returns how many blocks and bytes of them were appended and are not acknowledged. After Close it is what a
// bucket did not take in time: nobody was told that any of it is kept.
func (j *Journal) Unstored() (blocks int, bytes uint64) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	for _, p := range j.queue {
		blocks, bytes = blocks+int(p.end.Blocks), bytes+p.end.Bytes
	}
	return blocks + int(j.cur.end.Blocks), bytes + j.cur.end.Bytes
}
