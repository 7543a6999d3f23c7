package view

// Store keeps the rows of acknowledged segments in an embedded database.
type Store struct{}
