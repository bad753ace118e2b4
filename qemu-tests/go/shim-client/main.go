// shim-client drives a shim with the client that containerd's own project makes of its API, so that not only our encoder
// meets our decoder.
//
// Usage: shim-client SOCKET ID BUNDLE ROOTFS OUTPUT. It runs the container of BUNDLE, whose first process must run until
// it is killed, over task v2 and v3 in turn, and the shim ends with it. The first thing that is not as a client of
// containerd expects it is printed, and ends it with 1.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	v2 "github.com/containerd/containerd/api/runtime/task/v2"
	v3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const spec = `{"args":["sh","-c","echo from the exec; exit 9"],"env":["PATH=/usr/bin:/bin"],"cwd":"/","user":{"uid":0,"gid":0}}`

func check(step string, err error) {
	if err != nil {
		fail(step, err)
	}
}

func fail(step string, what any) {
	fmt.Printf("%s: %v\n", step, what)
	os.Exit(1)
}

func expect(step string, got, wanted any) {
	if got != wanted {
		fail(step, fmt.Sprintf("%v instead of %v", got, wanted))
	}
}

func main() {
	socket, id, bundle, rootfs, output := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	connection, err := net.Dial("unix", socket)
	check("dial", err)
	client := ttrpc.NewClient(connection)
	defer client.Close()
	older, newer := v2.NewTaskClient(client), v3.NewTTRPCTaskClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	_, err = older.State(ctx, &v2.StateRequest{ID: "nobody"})
	expect("State of nobody", status.Code(err), codes.NotFound)
	mounts := []*types.Mount{{Type: "bind", Source: rootfs, Options: []string{"rbind", "ro"}}}
	created, err := older.Create(ctx, &v2.CreateTaskRequest{ID: id, Bundle: bundle, Rootfs: mounts})
	check("Create", err)
	_, err = newer.Create(ctx, &v3.CreateTaskRequest{ID: id, Bundle: bundle, Rootfs: mounts})
	expect("Create again", status.Code(err), codes.AlreadyExists)
	started, err := newer.Start(ctx, &v3.StartRequest{ID: id})
	check("Start", err)
	expect("pid of Start", started.Pid, created.Pid)
	state, err := newer.State(ctx, &v3.StateRequest{ID: id})
	check("State", err)
	expect("status", state.Status, task.Status_RUNNING)
	expect("bundle", state.Bundle, bundle)
	connected, err := older.Connect(ctx, &v2.ConnectRequest{ID: id})
	check("Connect", err)
	expect("pid of Connect", connected.TaskPid, created.Pid)

	process := &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: []byte(spec)}
	_, err = newer.Exec(ctx, &v3.ExecProcessRequest{ID: id, ExecID: "e", Stdout: "file://" + output, Spec: process})
	check("Exec", err)
	_, err = older.Start(ctx, &v2.StartRequest{ID: id, ExecID: "e"})
	check("Start of the exec", err)
	waited, err := newer.Wait(ctx, &v3.WaitRequest{ID: id, ExecID: "e"})
	check("Wait for the exec", err)
	expect("exit status of the exec", waited.ExitStatus, uint32(9))
	if waited.ExitedAt == nil || time.Since(waited.ExitedAt.AsTime()).Abs() > time.Hour {
		fail("time of the exec's exit", waited.ExitedAt)
	}
	text, err := os.ReadFile(output)
	check("output", err)
	expect("output", string(text), "from the exec\n")
	_, err = older.Delete(ctx, &v2.DeleteRequest{ID: id, ExecID: "e"})
	check("Delete of the exec", err)

	pids, err := newer.Pids(ctx, &v3.PidsRequest{ID: id})
	check("Pids", err)
	expect("processes", len(pids.Processes) > 0 && pids.Processes[0].Pid == created.Pid, true)
	stats, err := older.Stats(ctx, &v2.StatsRequest{ID: id})
	check("Stats", err)
	expect("type of Stats", stats.Stats.GetTypeUrl(), "io.containerd.cgroups.v2.Metrics")
	_, err = newer.Pause(ctx, &v3.PauseRequest{ID: id})
	check("Pause", err)
	_, err = older.Resume(ctx, &v2.ResumeRequest{ID: id})
	check("Resume", err)
	_, err = newer.Checkpoint(ctx, &v3.CheckpointTaskRequest{ID: id})
	expect("Checkpoint", status.Code(err), codes.Unimplemented)

	_, err = older.Kill(ctx, &v2.KillRequest{ID: id, Signal: 9})
	check("Kill", err)
	exited, err := older.Wait(ctx, &v2.WaitRequest{ID: id})
	check("Wait", err)
	expect("exit status", exited.ExitStatus, uint32(137))
	_, err = newer.Kill(ctx, &v3.KillRequest{ID: id, Signal: 9})
	expect("Kill of what has ended", status.Code(err), codes.NotFound)
	deleted, err := newer.Delete(ctx, &v3.DeleteRequest{ID: id})
	check("Delete", err)
	expect("exit status of Delete", deleted.ExitStatus, uint32(137))
	_, err = newer.Shutdown(ctx, &v3.ShutdownRequest{ID: id})
	check("Shutdown", err)
	fmt.Println("all as expected")
}
