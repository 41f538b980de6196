package rig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs beside a test, and what it has printed.
type Process struct {
	name    string
	command *exec.Cmd
	input   io.WriteCloser
	printed *log
}

// Run starts a program. Its input is open until End.
func Run(command *exec.Cmd) (*Process, error) {
	input, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	printed := newLog()
	command.Stdout, command.Stderr = printed, printed
	// Signals are for a process that replaces itself by another, too.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return nil, err
	}
	started := &Process{name: strings.Join(command.Args, " "), command: command, input: input, printed: printed}
	go func() {
		_ = command.Wait()
		printed.close()
	}()
	return started, nil
}

// Wait returns when a text has been printed so many times.
func (p *Process) Wait(text string, times int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found := func(printed []byte) bool { return bytes.Count(printed, []byte(text)) >= times }
	if p.printed.await(ctx, found) {
		return nil
	}
	printed := p.Printed()
	return fmt.Errorf("%s has not printed %q %d times:\n%s", p.name, text, times, printed[max(0, len(printed)-4000):])
}

// Printed is all output so far.
func (p *Process) Printed() string {
	p.printed.lock.Lock()
	defer p.printed.lock.Unlock()
	return string(p.printed.content)
}

// Input is a line for the program to read.
func (p *Process) Input(line string) error {
	_, err := io.WriteString(p.input, line+"\n")
	return err
}

// Signal sends a signal.
func (p *Process) Signal(signal syscall.Signal) error {
	return syscall.Kill(-p.command.Process.Pid, signal)
}

// Pid is the id of the process that was started.
func (p *Process) Pid() int {
	return p.command.Process.Pid
}

// End asks it to end, and waits.
func (p *Process) End() {
	_ = p.Signal(syscall.SIGTERM)
	_ = p.input.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_ = p.printed.await(ctx, func([]byte) bool { return false })
	_ = p.Signal(syscall.SIGKILL)
}
