package rig

import (
	"context"
	"io"
	"sync"
)

// log is what a container has printed, for any number of readers that wait for more.
type log struct {
	lock    sync.Mutex
	more    *sync.Cond
	content []byte
	closed  bool
}

func newLog() *log {
	created := &log{}
	created.more = sync.NewCond(&created.lock)
	return created
}

func (l *log) Write(printed []byte) (int, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.content = append(l.content, printed...)
	l.more.Broadcast()
	return len(printed), nil
}

func (l *log) close() {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.closed = true
	l.more.Broadcast()
}

// wake makes readers look whether they still want to wait.
func (l *log) wake() {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.more.Broadcast()
}

// copyTo writes everything, and, if it follows, what comes until the process ends or the reader is gone.
func (l *log) copyTo(writer io.Writer, follow bool, gone func() bool) error {
	written := 0
	for {
		l.lock.Lock()
		for follow && !l.closed && len(l.content) == written && !gone() {
			l.more.Wait()
		}
		next := l.content[written:len(l.content):len(l.content)]
		last := !follow || l.closed || gone()
		l.lock.Unlock()
		if _, err := writer.Write(next); err != nil {
			return err
		}
		written += len(next)
		if last {
			return nil
		}
	}
}

// await returns whether what has been printed was accepted, before the process ended and the context, too.
func (l *log) await(ctx context.Context, accept func([]byte) bool) bool {
	defer context.AfterFunc(ctx, l.wake)()
	l.lock.Lock()
	defer l.lock.Unlock()
	for !accept(l.content) {
		if l.closed || ctx.Err() != nil {
			return false
		}
		l.more.Wait()
	}
	return true
}
