// Package tidy holds the rules of the source tree that a test can check: who may import whom, that
// everything exported is explained, that each dependency has one place and a reason, and that documents
// point at things that exist. It has no code of its own.
package tidy
