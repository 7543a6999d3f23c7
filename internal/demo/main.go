// Demo shows Holdfast at work: it builds the two programs, runs a service with a bucket in a
// temporary directory, enrols a customer, backs up a real tree twice, restores both archives, compares
// every byte, and leaves nothing behind. It needs Go, and nothing else: no root, no network.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	tree := flag.String("tree", "", "the directory to back up; Go's own source tree unless given")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := demo(ctx, *tree)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// stage is the demonstration's surroundings: everything it makes is below dir.
type stage struct {
	ctx     context.Context
	dir     string
	data    string
	bucket  string
	key     string
	cache   string
	began   time.Time
	service *exec.Cmd
}

// patience is how long the service may take to get ready or to stop.
const patience = 30 * time.Second

func demo(ctx context.Context, tree string) (err error) {
	if tree == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("ask go for its root: %w", err)
		}
		tree = strings.TrimSpace(string(out))
	}
	if tree, err = filepath.Abs(tree); err != nil {
		return err
	}
	if tree, err = filepath.EvalSymlinks(tree); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return err
	}
	s := &stage{ctx: ctx, dir: dir, data: filepath.Join(dir, "data"), bucket: filepath.Join(dir, "bucket"),
		key: filepath.Join(dir, "customer", "key"), cache: filepath.Join(dir, "customer", "cache"), began: time.Now()}
	defer func() {
		s.end()
		err = errors.Join(err, remove(dir))
		if ctx.Err() != nil {
			err = errors.New("interrupted; everything it made is removed")
		}
	}()
	return s.play(tree)
}

// play is the whole demonstration from top to bottom.
func (s *stage) play(tree string) error {
	say("Holdfast keeps backups that nobody but their owner can read. This run shows one, from nothing to")
	say("restored files, on this machine alone. Everything happens below %s and is removed at the end.", s.dir)

	title("1. Two programs")
	say("holdfast is the customer's; it holds the keys. holdfastd is the service; it never sees one.")
	if err := s.build(); err != nil {
		return err
	}

	title("2. A service")
	say("The service keeps all that it knows in one place, a bucket; here that is a directory. The file")
	say("\"identity\" and the bucket together are the whole service: on another machine they make it anew.")
	address, err := freeAddress()
	if err != nil {
		return err
	}
	for _, d := range []string{s.bucket, filepath.Dir(s.key)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if _, err := s.show("holdfastd", "init", "--data", s.data, "--bucket", "file://"+filepath.ToSlash(s.bucket), "--address", address); err != nil {
		return err
	}
	if err := s.serve(); err != nil {
		return err
	}

	title("3. A customer")
	say("The operator adds an account and hands over one token. It carries the service's address and public")
	say("key, so that nothing else has to be typed or trusted, and it works once.")
	token, err := s.show("holdfastd", "account", "add", "demo", "--data", s.data)
	if err != nil {
		return err
	}
	say("With it the customer makes a vault. The keys are made here and stay here. The owner file holds 24")
	say("recovery words, and belongs on paper or on a stick in a drawer: the words and the bucket are enough")
	say("to get everything back.")
	if _, err := s.show("holdfast", "init", "--token", strings.TrimSpace(token), "--key", s.key, "--owner", filepath.Join(filepath.Dir(s.key), "owner")); err != nil {
		return err
	}

	title("4. The first backup")
	source := filepath.Join(s.dir, "tree")
	say("The tree is a copy of %s, because it will be changed later.", tree)
	if err := copyTree(s.ctx, tree, source); err != nil {
		return err
	}
	first, err := survey(s.ctx, source)
	if err != nil {
		return err
	}
	say("It has %d paths with %s. Each file is cut at places that only the key knows, compressed,", len(first), size(first.bytes()))
	say("padded and sealed; the service gets sealed blocks with meaningless names.")
	if _, err := s.create(); err != nil {
		return err
	}
	stored, err := bucketBytes(s.bucket)
	if err != nil {
		return err
	}
	say("The bucket now holds %s for %s of files.", size(stored), size(first.bytes()))
	if _, err := s.customer("list"); err != nil {
		return err
	}
	if err := s.listSome(first); err != nil {
		return err
	}

	title("5. A few changes, and the second backup")
	if err := change(source, first); err != nil {
		return err
	}
	second, err := survey(s.ctx, source)
	if err != nil {
		return err
	}
	say("What has not changed is not even read again, unless it was written so shortly before the last backup")
	say("that its times prove nothing; what is known to the service is not sent again.")
	if _, err := s.create(); err != nil {
		return err
	}
	grown, err := bucketBytes(s.bucket)
	if err != nil {
		return err
	}
	say("The bucket grew by %s.", size(grown-stored))
	list, err := s.customer("list")
	if err != nil {
		return err
	}
	archives := regexp.MustCompile(`demo@\S+`).FindAllString(list, -1)
	slices.Sort(archives)
	archives = slices.Compact(archives)
	if len(archives) != 2 {
		return fmt.Errorf("list shows %d archives where two were made: %q", len(archives), archives)
	}

	title("6. Both back")
	say("A backup that was never read back is a hope. So: restore both, and compare every path with what was")
	say("backed up: type, mode, time to the nanosecond, and every byte.")
	for i, want := range []facts{first, second} {
		target := filepath.Join(s.dir, fmt.Sprintf("restored-%d", i+1))
		if _, err := s.customer("extract", archives[i], "--target", target); err != nil {
			return err
		}
		got, err := survey(s.ctx, filepath.Join(target, "tree"))
		if err != nil {
			return err
		}
		if err := equal(want, got); err != nil {
			return fmt.Errorf("%s came back different: %w", archives[i], err)
		}
		say("%s: all %d paths are exactly as they were.", archives[i], len(got))
		if err := remove(target); err != nil {
			return err
		}
	}

	title("7. Gone again")
	s.end()
	say("The service is stopped, and everything is removed. %.0f seconds in all.", time.Since(s.began).Seconds())
	say("To use it for real: see the first backup in README.md.")
	return nil
}

func title(text string) { fmt.Printf("\n== %s\n\n", text) }

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// build compiles the two programs below the stage's directory.
func (s *stage) build() error {
	say("\n  $ go build ./cmd/holdfast ./cmd/holdfastd")
	cmd := exec.CommandContext(s.ctx, "go", "build", "-o", filepath.Join(s.dir, "bin")+string(filepath.Separator), "./cmd/holdfast", "./cmd/holdfastd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs (run this in the top directory of the source tree): %w\n%s", err, out)
	}
	return nil
}

// show prints a command, runs it, prints what it says and returns its standard output.
func (s *stage) show(program string, args ...string) (string, error) {
	shown := slices.Clone(args)
	for i, a := range shown {
		a = strings.ReplaceAll(a, s.dir, "...")
		if len(a) > 60 {
			a = a[:24] + "[...]"
		}
		shown[i] = a
	}
	say("\n  $ %s %s", program, strings.Join(shown, " "))
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.dir, "bin", program), args...)
	cmd.Dir = s.dir
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	for line := range strings.Lines(out.String() + said.String()) {
		line = strings.ReplaceAll(strings.TrimRight(line, "\n"), s.dir, "...")
		if len(line) > 120 {
			line = line[:100] + "[...]"
		}
		say("    %s", line)
	}
	say("")
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", program, args[0], err)
	}
	return out.String(), nil
}

// customer runs the client with the customer's key.
func (s *stage) customer(command string, args ...string) (string, error) {
	return s.show("holdfast", append([]string{command, "--key", s.key, "--cache", s.cache}, args...)...)
}

func (s *stage) create() (string, error) { return s.customer("create", "-C", s.dir, "demo", "tree") }

// listSome lists one small directory of the archive.
func (s *stage) listSome(tree facts) error {
	children := map[string]int{}
	for p := range tree {
		children[filepath.Dir(p)]++
	}
	var fit []string
	for d, n := range children {
		if n >= 3 && n <= 8 && d != "." {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	slices.Sort(fit)
	say("One directory can be looked at without fetching the rest:")
	_, err := s.customer("list", "demo", "tree/"+filepath.ToSlash(fit[0]))
	return err
}

// serve starts the service and returns when it says that it is ready.
func (s *stage) serve() error {
	say("  $ holdfastd serve --data .../data &")
	cmd := exec.Command(filepath.Join(s.dir, "bin", "holdfastd"), "serve", "--data", s.data)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.service = cmd
	said := make(chan string, 1)
	go func() {
		defer close(said)
		var log strings.Builder
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			if strings.Contains(sc.Text(), "ready") {
				said <- sc.Text()
				io.Copy(io.Discard, pipe)
				return
			}
			fmt.Fprintln(&log, sc.Text())
		}
		fmt.Fprint(os.Stderr, log.String())
	}()
	select {
	case line, ok := <-said:
		if !ok {
			return errors.New("the service ended before it was ready")
		}
		say("    %s\n", line)
		return nil
	case <-time.After(patience):
		return fmt.Errorf("the service was not ready within %v", patience)
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// end stops the service, if it runs.
func (s *stage) end() {
	if s.service == nil {
		return
	}
	if s.service.Process.Signal(syscall.SIGTERM) != nil {
		s.service.Process.Kill()
	}
	kill := time.AfterFunc(patience, func() { s.service.Process.Kill() })
	s.service.Wait()
	kill.Stop()
	s.service = nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// fact is what must come back of one path.
type fact struct {
	mode   fs.FileMode
	mtime  time.Time
	size   int64
	sum    [32]byte
	target string
}

// facts are the facts of a tree, by relative path.
type facts map[string]fact

func (f facts) bytes() (n int64) {
	for _, x := range f {
		n += x.size
	}
	return n
}

// survey reads a whole tree.
func survey(ctx context.Context, dir string) (facts, error) {
	all := facts{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		x := fact{mode: info.Mode(), mtime: info.ModTime()}
		switch {
		case info.Mode().IsRegular():
			x.size = info.Size()
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			h.Sum(x.sum[:0])
		case info.Mode()&fs.ModeSymlink != 0:
			if x.target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		all[rel] = x
		return nil
	})
	return all, err
}

// equal says which path differs first, if any.
func equal(want, got facts) error {
	var paths []string
	for p := range want {
		paths = append(paths, p)
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	for _, p := range paths {
		w, inWant := want[p]
		g, inGot := got[p]
		switch {
		case !inGot:
			return fmt.Errorf("%s is missing", p)
		case !inWant:
			return fmt.Errorf("%s was not there", p)
		case w.mode != g.mode:
			return fmt.Errorf("%s has mode %v instead of %v", p, g.mode, w.mode)
		case !w.mtime.Equal(g.mtime):
			return fmt.Errorf("%s has time %v instead of %v", p, g.mtime, w.mtime)
		case w.size != g.size || w.sum != g.sum || w.target != g.target:
			return fmt.Errorf("%s has other content", p)
		}
	}
	return nil
}

// copyTree copies directories, files and symlinks with modes and times; what is copied can be changed.
func copyTree(ctx context.Context, from, to string) error {
	type stamp struct {
		path string
		at   time.Time
	}
	var dirs []stamp
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		info, err := os.Stat(p)
		switch {
		case e.Type()&fs.ModeSymlink != 0 && rel != ".":
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(target, dst)
		case err != nil:
			return err
		case info.IsDir():
			dirs = append(dirs, stamp{dst, info.ModTime()})
			return os.Mkdir(dst, info.Mode().Perm()|0o700)
		case info.Mode().IsRegular():
			return copyFile(p, dst, info)
		}
		return nil // the demonstration does without devices
	})
	for _, d := range slices.Backward(dirs) {
		err = errors.Join(err, os.Chtimes(d.path, d.at, d.at))
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

func copyFile(from, to string, info fs.FileInfo) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm()|0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// change edits, adds, renames and removes a few files, and says so.
func change(dir string, tree facts) error {
	var files []string
	for p, x := range tree {
		if x.mode.IsRegular() && x.size > 0 {
			files = append(files, p)
		}
	}
	slices.Sort(files)
	if len(files) < 3 {
		return errors.New("the tree needs three files with content at least; name another with TREE=")
	}
	edit, move, drop := files[0], files[len(files)/2], files[len(files)-1]
	say("Edited  %s", edit)
	f, err := os.OpenFile(filepath.Join(dir, edit), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("One more line.\n"); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	say("Added   new-file.txt")
	if err := os.WriteFile(filepath.Join(dir, "new-file.txt"), []byte(strings.Repeat("Something new.\n", 100)), 0o640); err != nil {
		return err
	}
	say("Renamed %s", move)
	if err := os.Rename(filepath.Join(dir, move), filepath.Join(dir, move+".renamed")); err != nil {
		return err
	}
	say("Removed %s", drop)
	return os.Remove(filepath.Join(dir, drop))
}

func bucketBytes(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// size writes a number of bytes for people, in the units of holdfast itself.
func size(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d bytes", n)
	case n < 10<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// remove removes a tree, directories that forbid it included.
func remove(dir string) error {
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			os.Chmod(p, 0o700) // RemoveAll says so if this failed and mattered
			if err != nil {
				return fs.SkipDir
			}
		}
		return nil
	})
	return os.RemoveAll(dir)
}
