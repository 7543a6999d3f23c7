package sim

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/history"
	"holdfast/internal/never"
	"holdfast/internal/part"
	"holdfast/service/bucket/sim"
	"holdfast/service/policy"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

var (
	seedFlag  = flag.String("seed", os.Getenv("HOLDFAST_SEED"), "the one seed to run, again")
	seedsFlag = flag.Int("seeds", envInt("HOLDFAST_SEEDS", 0), "how many seeds TestSeeds runs; 0 is a few")
	townsFlag = flag.Int("towns", envInt("HOLDFAST_TOWNS", 0), "how many seeds TestTowns runs; 0 is a few")
)

func envInt(name string, standard int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return standard
}

// rare are the states that a run of many seeds must have come to, and rarer those that take a few hundred.
var (
	rare = []string{
		"a fresh key was taken after a put that failed",
		"a twin of a segment landed",
		"a removed segment landed once more",
		"a takeover came while the owner was cleaning",
		"a block that had been condemned was asked for again, and stored anew",
		"a damaged block was stored anew by its owner",
		"a tree said its links by one before",
		"an owner that was replaced while it was paused stopped",
		"a backup went on in another session, after a restart",
		"a client was killed",
		"an archive was deleted and brought back",
		"a policy expired an archive",
		"deleting was frozen when space was to be freed, and nothing was deleted",
		"the view was made anew from the bucket and compared",
		"a start began with a checkpoint",
		"a process ended between two steps of freeing space",
		"a process ended between two steps of a checkpoint",
		"accounts were charged",
		"a payment was booked, and the operator was not told",
	}
	rarer = func() (all []string) {
		for _, kind := range append(slices.Clone(freeingSteps), checkpointSteps...) {
			all = append(all, "a process ended before "+kind, "a process ended after "+kind)
		}
		return append(all, "a damaged block was found by a scrub", "a start began with bundles alone",
			"an outage was credited, and the operator was not told",
			"a process ended before "+writesMoney, "a process ended after "+writesMoney)
	}()
	manySeeds = 200
)

// TestSeeds runs customers, jobs, faults, restarts and takeovers as seeds draw them, on the real journal. After every
// step all that was promised holds: each committed archive is there byte for byte, none that was not committed appears,
// nothing is deleted that is referenced or not yet due, the sums agree, no key ever had two contents, and the view
// is what the bucket says. At the end the faults cease, and everything pending completes, and all that nothing
// needs is gone.
//
//	make sim SEEDS=2000                                    as many seeds
//	go test ./sim -run 'TestSeeds$' -seed 17               one, again
func TestSeeds(t *testing.T) {
	n := cmp.Or(*seedsFlag, 50)
	if *seedsFlag == 0 && part.Heavy() {
		n = 150
	}
	seen := eachSeed(t, n, func(t *testing.T, seed uint64, seen, injected *sometimes) (simulated time.Duration) {
		synctest.Test(t, func(t *testing.T) { simulated = runSeed(t, seed, seen, injected) })
		return simulated
	})
	if *seedFlag == "" {
		seen.require(t, rare...)
		if n >= manySeeds {
			seen.require(t, rarer...)
		}
	}
}

// eachSeed runs n seeds, or the one that -seed names, as many at a time as there are processors, and returns what they came
// to. run returns for how long it simulated.
func eachSeed(t *testing.T, n int, run func(t *testing.T, seed uint64, seen, injected *sometimes) time.Duration) *sometimes {
	t.Helper()
	first := uint64(1)
	if *seedFlag != "" {
		s, err := strconv.ParseUint(*seedFlag, 10, 64)
		if err != nil {
			t.Fatalf("a seed is a number: %v", err)
		}
		first, n = s, 1
	}
	if n < 1 {
		t.Fatalf("%d seeds are none", n)
	}
	defer never.Catch(func(e never.Event) { t.Errorf("an event that must never happen: %s", e) })()
	var seen, injected sometimes
	var simulated atomic.Int64
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		next := atomic.Uint64{}
		next.Store(first)
		for worker := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for {
					seed := next.Add(1) - 1
					if seed >= first+uint64(n) {
						return
					}
					t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { simulated.Add(int64(run(t, seed, &seen, &injected))) })
				}
			})
		}
	})
	took := time.Since(began)
	hours := time.Duration(simulated.Load()).Hours()
	t.Logf("%d seeds, %.0f simulated hours in %s: %.0f a second\nthey came to\n%sfaults injected\n%s",
		n, hours, took.Round(time.Second), hours/took.Seconds(), &seen, &injected)
	return &seen
}

// runSeed is one seed. It returns how much time passed.
func runSeed(t *testing.T, seed uint64, seen, injected *sometimes) time.Duration {
	c := &cell{
		T: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), seen: seen, began: time.Now(),
		faults: &faults{seed: seed, injected: injected}, stash: map[string][]byte{}, bad: map[badBlock]bool{},
		till: newTill(seed),
	}
	c.store = sim.New(seed).Store()
	c.steadily, c.large = c.chance(50), c.chance(25)
	c.faults.times = []int{0, 1, 2, 5}[c.rng.IntN(4)]
	defer func() {
		if c.p != nil {
			c.p.goOn()
			c.p.Crash()
			c.p.j.Close(ctx)
		}
		for _, p := range c.paused {
			p.goOn()
			p.Crash()
			p.j.Close(ctx)
		}
		if t.Failed() {
			t.Logf("seed %d; repeat it with: go test ./sim -run 'TestSeeds$' -seed %d -v\n%s", seed, seed, strings.Join(c.steps, "\n"))
		}
	}()
	c.start(view.NewDisk(), 0, false)
	for range 2 + c.rng.IntN(3) {
		c.enrol()
	}
	c.faults.set(true)
	for range 15 { // something to have, and to free
		u := c.customers[c.rng.IntN(len(c.customers))]
		c.backup(u)
		c.alive()
	}
	for n := range 30 {
		c.step()
		c.alive()
		c.money()
		c.alive()
		c.check(n%10 == 9)
	}
	c.heal()
	return time.Since(c.began)
}

// step does something that the seed draws.
func (c *cell) step() {
	c.Helper()
	u := c.customers[c.rng.IntN(len(c.customers))]
	switch n := c.rng.IntN(100); {
	case n < 36:
		c.backup(u)
	case n < 46:
		c.remove(u)
	case n < 49:
		c.undelete(u)
	case n < 51:
		c.policy(u)
	case n < 62:
		d := time.Duration(c.rng.Int64N(int64([]time.Duration{time.Hour, 2 * day, 6 * day, 12 * day}[c.rng.IntN(4)])))
		c.note("%s pass", d.Round(time.Second))
		time.Sleep(d)
	case n < 64:
		c.policies()
	case n < 84:
		c.free()
	case n < 87:
		c.note("the process ends")
		c.restart()
	case n < 88:
		c.note("the process ends in order")
		disk, host := c.p.disk, c.p.host
		c.stop()
		c.start(disk, host, false)
	case n < 90:
		c.note("the owner is paused")
		c.p.hold()
		c.takeover()
	case n < 93:
		c.wake()
	case n < 97:
		c.landAgain()
	case n < 98:
		c.freeze()
	case n < 99:
		if c.damage(); c.chance(50) {
			n, err := c.scrub(30)
			c.note("scrub: %d blocks are damaged, %v", n, err)
			if n > 0 {
				c.reached("a damaged block was found by a scrub")
			}
		}
	default:
		if n := c.store.Land(); n > 0 {
			c.note("%d writes land that were given up", n)
		}
	}
}

// ended reports whether a call came to nothing because the process has ended; any other error is one of the test's.
func (c *cell) ended(what string, err error) bool {
	c.Helper()
	if err == nil {
		return false
	}
	if !gone(err) {
		c.Errorf("%s: %v", what, err)
	}
	c.note("%s: %v", what, err)
	return true
}

// backup takes some steps of a customer's backup, which goes on another time if it is not over.
func (c *cell) backup(u *customer) {
	c.Helper()
	if u.run == nil {
		u.begin(c, c.rng.IntN(5))
	} else if c.chance(8) {
		c.note("customer %.4s: the client is killed", u.ID)
		u.abandon(c)
		return
	}
	for range 1 + c.rng.IntN(6) {
		c.note("customer %.4s: step %d of a backup", u.ID, u.run.step)
		if c.ended("a backup", u.backup(c)) || u.run == nil {
			return
		}
	}
}

// remove deletes an archive.
func (c *cell) remove(u *customer) {
	c.Helper()
	live := u.in(history.Live)
	if len(live) == 0 {
		return
	}
	a := live[c.rng.IntN(len(live))]
	c.note("customer %.4s: archive %.8s is deleted", u.ID, a.commit.ID())
	before := time.Now().UnixNano()
	err := c.record(u, u.ByOwner(history.TypeDelete, history.IDs{a.commit.ID()}.Encode()))
	if a.maybe = c.ended("delete", err); !a.maybe {
		a.state, a.deleted = history.Deleted, before
	}
}

// undelete brings a deleted archive back.
func (c *cell) undelete(u *customer) {
	c.Helper()
	all := u.in(history.Deleted)
	if len(all) == 0 {
		return
	}
	a := all[c.rng.IntN(len(all))]
	c.note("customer %.4s: archive %.8s is brought back", u.ID, a.commit.ID())
	err := c.record(u, u.ByOwner(history.TypeUndelete, history.IDs{a.commit.ID()}.Encode()))
	if a.maybe = c.ended("undelete", err); !a.maybe {
		a.state = history.Live
		c.reached("an archive was deleted and brought back")
	}
}

// policy has the service keep the newest archives only.
func (c *cell) policy(u *customer) {
	c.Helper()
	keep := uint32(1 + c.rng.IntN(4))
	c.note("customer %.4s: keep %d archives", u.ID, keep)
	if u.keep == 0 || keep < u.keep {
		u.keep = keep // if it is lost, the model allows more than the service does
	}
	if c.ended("policy", c.record(u, u.ByOwner(history.TypePolicy, history.Policy{Series: u.Series, Last: keep}.Encode()))) {
		return
	}
	u.keep = keep
}

// policies runs the hourly job.
func (c *cell) policies() {
	c.Helper()
	done, err := policy.Run(ctx, c.p.j, viewtest.LogKey(), nil)
	c.note("policies: %+v, %v", done, err)
}
