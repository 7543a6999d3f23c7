package source

// Match is match for tests.
func (rs *Rules) Match(p string, dir bool) string { return rs.match(p, dir) }
