package seal

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	mrand "math/rand/v2"
	"slices"
	"testing"

	"holdfast"
	"holdfast/client/chunk"
	"holdfast/client/keyring"
)

// In these games an observer of sizes guesses one bit, again and again. Somebody who knows nothing wins half
// of the rounds: with gameRounds of them, the share that he wins is off by more than gameSlack, one way or the
// other, with a probability below 1e-6 (1000 tosses of a coin, 5.06 standard deviations). The seeds are fixed,
// so that a test that passed once goes on to pass; whoever changes them, or what is derived from them,
// takes that chance. Each game has a control, in which the defence is taken away and the observer must win.
const (
	gameRounds = 1000
	gameSlack  = 0.08
	gameWon    = 0.99 // share of the rounds that the observer wins in a control
)

func judge(t *testing.T, what string, won int, control bool) {
	t.Helper()
	share := float64(won) / gameRounds
	t.Logf("%s: won %d of %d", what, won, gameRounds)
	if control && share < gameWon {
		t.Errorf("%s: the observer wins %.3f of the rounds without the defence: the game does not show what it should", what, share)
	}
	if !control && math.Abs(share-0.5) > gameSlack {
		t.Errorf("%s: the observer wins %.3f of the rounds", what, share)
	}
}

// gameMachine returns a machine of a group that no other seed has.
func gameMachine(seed uint64) *keyring.Machine {
	var owner holdfast.Key
	binary.LittleEndian.PutUint64(owner[:], seed)
	return keyring.OwnerOf(owner).NewMachine(vault, holdfast.GroupID{1}, holdfast.RightsAll, 256<<10)
}

// cutSizes returns the sizes of the sealed blocks of a file, in order, as whoever stores them sees them.
func cutSizes(t *testing.T, m *keyring.Machine, cuts *keyring.Cuts, data []byte) []int {
	t.Helper()
	s, _, err := NewSession(stream(1), m)
	if err != nil {
		t.Fatal(err)
	}
	c := chunk.New(bytes.NewReader(data), cuts, chunk.MinAverage)
	var sizes []int
	var buf []byte
	for {
		buf, err = c.Next(buf)
		if err == io.EOF {
			return sizes
		}
		if err != nil {
			t.Fatal(err)
		}
		_, sealed := seal(t, s, holdfast.KindChunk, buf, nil, nil)
		sizes = append(sizes, len(sealed))
	}
}

// common counts the sizes that two lists share.
func common(a, b []int) (n int) {
	left := map[int]int{}
	for _, x := range a {
		left[x]++
	}
	for _, x := range b {
		if left[x] > 0 {
			left[x]--
			n++
		}
	}
	return n
}

// likelihood learns from lists of sizes how probable each size and each number of blocks is, and returns the
// logarithm of a list's probability.
func likelihood(training [][]int) func([]int) float64 {
	sizes, counts, all := map[int]float64{}, map[int]float64{}, 0.0
	for _, l := range training {
		counts[len(l)]++
		for _, x := range l {
			sizes[x]++
			all++
		}
	}
	return func(l []int) float64 {
		p := math.Log((counts[len(l)] + 0.5) / float64(len(training)))
		for _, x := range l {
			p += math.Log((sizes[x] + 0.5) / all)
		}
		return p
	}
}

// TestFingerprintGame: two files are known to the observer, of one length and as random as the other, so that
// they differ only in where they are cut. One of them is stored in a group that is new in each round, and he
// sees the sizes of the sealed blocks, in order, and which of them are equal (none is). One observer compares
// them with the cuts under keys of his own; the other has learned, under many keys of his own, which sizes
// and how many blocks each of the files gives. See eprint 2025/532 and 2025/558 for what follows where such
// an observer wins: with a chunker whose parameters can be known or found, he does, and here as well.
func TestFingerprintGame(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of rounds, and nothing runs beside another")
	}
	t.Parallel()
	files := [2][]byte{random(101, 48<<10), random(102, 48<<10)}
	public := gameMachine(1 << 40)
	publicKeys := public.GroupKeys()
	for _, control := range []bool{false, true} {
		// cutsOf returns the keys that a group cuts with.
		cutsOf := func(m *keyring.Machine) *keyring.Cuts {
			if control {
				return &publicKeys.Data
			}
			k := m.GroupKeys()
			return &k.Data
		}
		var predicted [2][]int
		var learned [2]func([]int) float64
		for b, f := range files {
			predicted[b] = cutSizes(t, public, &publicKeys.Data, f)
			var training [][]int
			for i := range uint64(200) {
				m := gameMachine(1<<41 + i)
				training = append(training, cutSizes(t, m, cutsOf(m), f))
			}
			learned[b] = likelihood(training)
		}
		coin := mrand.New(mrand.NewPCG(7, 8))
		var byPrediction, byLearning int
		for round := range uint64(gameRounds) {
			m := gameMachine(round)
			b := coin.IntN(2)
			seen := cutSizes(t, m, cutsOf(m), files[b])
			if guess(coin, float64(common(seen, predicted[0])), float64(common(seen, predicted[1]))) == b {
				byPrediction++
			}
			if guess(coin, learned[0](seen), learned[1](seen)) == b {
				byLearning++
			}
		}
		what := "secret cuts"
		if control {
			what = "known cuts"
		}
		judge(t, what+", predicted", byPrediction, control)
		judge(t, what+", learned", byLearning, control)
	}
}

// guess returns which of two scores is the higher; a coin decides between equal ones.
func guess(coin *mrand.Rand, a, b float64) int {
	switch {
	case a > b:
		return 0
	case b > a:
		return 1
	}
	return coin.IntN(2)
}

// TestCompressionOracleGame: somebody places a file beside a secret one, so that they get into one pack, and
// watches how large the pack becomes. His file holds a guess at the secret, which in half of the rounds is
// right. So that padding hides nothing, he tries again with his file longer by a few bytes each time, until
// the padded size has gone through a whole step, and adds up what he sees. He knows what the sum is for a right
// guess and for a wrong one, as he can make such packs himself. Compressed together, a right guess costs less.
func TestCompressionOracleGame(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of rounds, and nothing runs beside another")
	}
	t.Parallel()
	const secretSize, step = 300, 16 // bytes; padding is in steps of 256 here
	m := gameMachine(1)
	s, _, err := NewSession(stream(1), m)
	if err != nil {
		t.Fatal(err)
	}
	r := mrand.New(mrand.NewPCG(9, 10))
	token := func() []byte {
		b := make([]byte, secretSize)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	head := append(text(700), "\ntoken = "...)
	filler := random(55, 2<<10)
	// total is what he sees.
	total := func(secret, guess []byte, together bool) (sum int) {
		for n := 1 << 10; n < 1<<10+256; n += step {
			mine := slices.Concat(head, guess, filler[:n])
			theirs := slices.Concat(head, secret, filler[:500])
			frames := []int{len(mine), len(theirs)}
			if together {
				frames = nil
			}
			_, sealed := seal(t, s, holdfast.KindPack, slices.Concat(mine, theirs), nil, frames)
			if len(sealed) >= len(mine)+len(theirs) {
				t.Fatal("nothing is compressed here")
			}
			sum += len(sealed)
		}
		return sum
	}
	for _, together := range []bool{false, true} {
		won := 0
		for range gameRounds {
			secret, guessed := token(), token()
			right := r.IntN(2)
			if right == 1 {
				guessed = secret
			}
			seen := total(secret, guessed, together)
			ifRight, ifWrong := total(guessed, guessed, together), total(token(), guessed, together)
			if guess(r, -math.Abs(float64(seen-ifWrong)), -math.Abs(float64(seen-ifRight))) == right {
				won++
			}
		}
		what := "each file alone"
		if together {
			what = "files together"
		}
		judge(t, what, won, together)
	}
}
