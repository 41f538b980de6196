package rig

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
)

const (
	nodeName    = "node"
	kubeletPort = 10250
)

// Node is a machine of a cluster, and its scheduler, as there is only one: each pod of the cluster is a process in a
// network namespace of its own.
type Node struct {
	client kubernetes.Interface
	pods   listers.PodLister
	queue  workqueue.TypedRateLimitingInterface[types.NamespacedName]
	server *http.Server
	stop   context.CancelFunc
	// The programs that images are.
	images  map[string]string
	apiHost string
	ended   sync.WaitGroup

	lock    sync.Mutex
	running map[types.NamespacedName]*pod
	started int
}

// StartNode registers the node of a cluster, and runs its pods and its kubelet. An image is the program of its name in
// `images`, or else the conformance suite's echo server.
func StartNode(ctx context.Context, cluster *Cluster, images map[string]string) (*Node, error) {
	client, err := kubernetes.NewForConfig(cluster.Config())
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](20*time.Millisecond, time.Second)
	node := &Node{
		client:  client,
		pods:    factory.Core().V1().Pods().Lister(),
		queue:   workqueue.NewTypedRateLimitingQueue(limiter),
		running: map[types.NamespacedName]*pod{},
		images:  maps.Clone(images),
	}
	if node.images == nil {
		node.images = map[string]string{}
	}
	node.images["echo-basic"] = filepath.Join(Directory(), "echo-basic")
	if node.apiHost, _, err = net.SplitHostPort(cluster.Servers[0].Address); err != nil {
		return nil, err
	}
	if err := node.register(ctx); err != nil {
		return nil, fmt.Errorf("cannot register the node: %w", err)
	}
	if err := node.serveKubelet(cluster.CA); err != nil {
		return nil, fmt.Errorf("cannot start the kubelet: %w", err)
	}
	add := func(object any) {
		key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
		if err == nil {
			namespace, name, _ := cache.SplitMetaNamespaceKey(key)
			node.queue.Add(types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
	_, err = factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    add,
		UpdateFunc: func(_, object any) { add(object) },
		DeleteFunc: add,
	})
	if err != nil {
		return nil, err
	}
	ctx, node.stop = context.WithCancel(ctx)
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	node.ended.Go(func() { node.work(ctx) })
	return node, nil
}

// Stop ends all pods and the kubelet.
func (n *Node) Stop() {
	n.stop()
	n.queue.ShutDown()
	_ = n.server.Close()
	n.ended.Wait()
	n.lock.Lock()
	defer n.lock.Unlock()
	for _, pod := range n.running {
		pod.end()
	}
}

func (n *Node) register(ctx context.Context) error {
	node, err := n.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	node.Status = corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: NodeAddress}},
		Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: kubeletPort}},
	}
	_, err = n.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

func (n *Node) work(ctx context.Context) {
	for {
		key, shutdown := n.queue.Get()
		if shutdown {
			return
		}
		if err := n.sync(ctx, key); err != nil {
			n.queue.AddRateLimited(key)
		} else {
			n.queue.Forget(key)
		}
		n.queue.Done(key)
	}
}

// sync does the next thing that a pod needs. An error means: again, a little later.
func (n *Node) sync(ctx context.Context, key types.NamespacedName) error {
	object, err := n.pods.Pods(key.Namespace).Get(key.Name)
	if apierrors.IsNotFound(err) {
		// By force: others have ended before.
		n.end(key, (*pod).kill)
		return nil
	}
	if err != nil {
		return err
	}
	pods := n.client.CoreV1().Pods(key.Namespace)
	running := n.find(key.Namespace, key.Name)
	switch {
	case running != nil && running.uid != object.UID:
		n.end(key, (*pod).kill)
		return fmt.Errorf("%s is another pod of the same name", key)
	case object.DeletionTimestamp != nil:
		n.end(key, (*pod).end)
		err := pods.Delete(ctx, key.Name, metav1.DeleteOptions{
			GracePeriodSeconds: ptr.To[int64](0),
			Preconditions:      &metav1.Preconditions{UID: &object.UID},
		})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	case object.Spec.NodeName == "":
		return pods.Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: object.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName},
		}, metav1.CreateOptions{})
	case running == nil:
		started, err := n.run(ctx, object)
		if err != nil {
			return err
		}
		n.lock.Lock()
		n.running[key] = started
		n.lock.Unlock()
		return fmt.Errorf("%s has to become ready", key)
	case object.Status.PodIP == "":
		if !running.probe(object) {
			return fmt.Errorf("%s is not ready yet", key)
		}
		changed := object.DeepCopy()
		changed.Status = running.status(object)
		_, err := pods.UpdateStatus(ctx, changed, metav1.UpdateOptions{})
		return err
	}
	return nil
}

// find is a pod that runs, or nil.
func (n *Node) find(namespace, name string) *pod {
	n.lock.Lock()
	defer n.lock.Unlock()
	return n.running[types.NamespacedName{Namespace: namespace, Name: name}]
}

func (n *Node) end(key types.NamespacedName, how func(*pod)) {
	n.lock.Lock()
	running := n.running[key]
	delete(n.running, key)
	n.lock.Unlock()
	if running != nil {
		how(running)
	}
}
