package keyring

import (
	"errors"
	"fmt"
	"strings"

	"github.com/tyler-smith/go-bip39"
)

const wordCount = 24

// ErrWords reports text that is not the 24 words of an owner.
var ErrWords = errors.New("these are not the 24 recovery words")

// Words returns the owner's seed as 24 English words, separated by single spaces.
func (o Owner) Words() string {
	s, err := bip39.NewMnemonic(o.seed[:])
	if err != nil {
		panic("keyring: words: " + err.Error()) // only a wrong length does this
	}
	return s
}

// ParseWords returns the owner with these 24 words. Capitals and any amount of white space are
// forgiven, nothing else: the error wraps ErrWords, says which word is wrong if one is, and never
// repeats a word that is right.
func ParseWords(s string) (Owner, error) {
	words := strings.Fields(strings.ToLower(s))
	if len(words) != wordCount {
		return Owner{}, fmt.Errorf("%w: there are %d of them; type all %d in their order", ErrWords, len(words), wordCount)
	}
	for i, w := range words {
		if _, ok := bip39.GetWordIndex(w); !ok {
			return Owner{}, fmt.Errorf("%w: word %d, %q, is not in the list; look for a slip of the pen", ErrWords, i+1, w)
		}
	}
	raw, err := bip39.EntropyFromMnemonic(strings.Join(words, " "))
	var o Owner
	if err != nil || len(raw) != len(o.seed) {
		return Owner{}, fmt.Errorf("%w: each word exists, but they do not fit together; compare them and their order with the paper", ErrWords)
	}
	copy(o.seed[:], raw)
	return o, nil
}
