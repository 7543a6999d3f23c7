package journal

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

// order is one way in which a test can choose who is next, each time that several could be.
type order struct {
	n      int   // of the orders that were begun, from 0
	chosen []int // as far as it was said, and then 0 each time
	of     []int // among how many
	said   int
}

// choose returns whose turn it is of n.
func (o *order) choose(n int) int {
	i := len(o.of)
	o.of = append(o.of, n)
	if i == len(o.chosen) {
		o.chosen = append(o.chosen, 0)
	}
	return min(o.chosen[i], n-1)
}

// again returns the same order once more.
func (o *order) again() *order {
	return &order{n: o.n, chosen: append([]int{}, o.chosen...), said: len(o.chosen)}
}

func (o *order) String() string { return strings.Trim(fmt.Sprint(o.chosen), "[]") }

// said is HOLDFAST_ORDERS: "all" (make orders), or the one order to run again.
var said = os.Getenv("HOLDFAST_ORDERS")

// all reports whether every order is to be run.
func all() bool { return said == "all" }

// explore calls run with every order that there is, side by side: where one that was run could have gone another way,
// another does. Of each point's other ways it takes one in spread, unless all are to be run. run has to do the same in the same order.
func explore(t *testing.T, spread int, run func(t *testing.T, o *order)) {
	var mu sync.Mutex
	free := sync.NewCond(&mu)
	todo, busy, runs, strayed := [][]int{nil}, 0, 0, 0
	if said != "" && said != "all" {
		var one []int
		for _, f := range strings.Fields(said) {
			var c int
			if _, err := fmt.Sscan(f, &c); err != nil {
				t.Fatal("HOLDFAST_ORDERS is neither \"all\" nor an order:", err)
			}
			one = append(one, c)
		}
		todo = [][]int{one}
	}
	begin := func() *order {
		mu.Lock()
		defer mu.Unlock()
		for len(todo) == 0 && busy > 0 && !t.Failed() {
			free.Wait()
		}
		if len(todo) == 0 || t.Failed() {
			return nil
		}
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		busy++
		if runs++; runs%1000 == 0 {
			t.Logf("%d orders begun, %d to be begun so far", runs, len(todo))
		}
		return &order{n: runs - 1, chosen: next, said: len(next)}
	}
	end := func(o *order) {
		mu.Lock()
		defer mu.Unlock()
		defer free.Broadcast()
		busy--
		for i, c := range o.chosen {
			if i >= len(o.of) || c >= o.of[i] {
				strayed++
				return
			}
		}
		if said != "" && said != "all" {
			return
		}
		for i := o.said; i < len(o.of); i++ {
			for c := 1; c < o.of[i]; c++ {
				other := append(append([]int{}, o.chosen[:i]...), c)
				if all() || kept(other, spread) {
					todo = append(todo, other)
				}
			}
		}
	}
	t.Cleanup(func() {
		t.Logf("%d orders run", runs)
		if strayed > runs/100 {
			t.Errorf("%d of them went another way than before: it is not the order that decides", strayed)
		}
	})
	for share := range 4 {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			for o := begin(); o != nil; o = begin() {
				func() {
					defer end(o)
					run(t, o)
				}()
				if t.Failed() {
					t.Fatalf("again: HOLDFAST_ORDERS=%q", o)
				}
			}
		})
	}
}

// kept draws one in spread.
func kept(chosen []int, spread int) bool {
	h := sha256.Sum256([]byte(fmt.Sprint(chosen)))
	return int(h[0])%spread == 0
}
