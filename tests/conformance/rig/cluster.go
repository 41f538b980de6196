package rig

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const (
	patience  = 2 * time.Minute
	apiPort   = "6443"
	services  = "10.98.0.0/16"
	adminName = "admin"
)

// sharedEtcd is one for all clusters: each has a prefix of its own.
var sharedEtcd = sync.OnceValues(func() (*embed.Etcd, error) { return startEtcd() })

// Cluster is a control plane: one or more API servers on the same store.
type Cluster struct {
	Name    string
	Servers []*APIServer
	CA      *Authority

	admin       Pair
	kubelet     Pair
	controllers *Component
}

// APIServer is one kube-apiserver. It is started again with the same address and arguments.
type APIServer struct {
	Address string

	name      string
	arguments []string
	component *Component
	client    *http.Client
}

// StartCluster starts an API server on each of these addresses of 10.99.0.0/16. By its name and by `hosts` they can be
// called, too.
func StartCluster(name string, hosts []string, addresses ...string) (*Cluster, error) {
	if _, err := sharedEtcd(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	authority, err := newAuthority(filepath.Join(Directory(), name))
	if err != nil {
		return nil, err
	}
	cluster := &Cluster{Name: name, CA: authority}
	if cluster.admin, err = authority.Client(adminName, "system:masters"); err != nil {
		return nil, err
	}
	if cluster.kubelet, err = authority.Client("kube-apiserver-kubelet-client"); err != nil {
		return nil, err
	}
	tokens, err := authority.Server("service-accounts")
	if err != nil {
		return nil, err
	}
	for i, address := range addresses {
		if err := AddAddress(address); err != nil {
			return nil, err
		}
		server, err := cluster.newServer(fmt.Sprintf("%s-apiserver-%d", name, i), address, tokens, hosts)
		if err != nil {
			return nil, err
		}
		cluster.Servers = append(cluster.Servers, server)
	}
	// One after the other: the first makes what all need.
	for _, server := range cluster.Servers {
		if err := server.Start(); err != nil {
			return nil, err
		}
	}
	return cluster, nil
}

func (c *Cluster) newServer(name, address string, tokens Pair, hosts []string) (*APIServer, error) {
	serving, err := c.CA.Server(name, append([]string{address, c.Name, "kubernetes", "localhost"}, hosts...)...)
	if err != nil {
		return nil, err
	}
	admin, err := tls.LoadX509KeyPair(c.admin.Certificate, c.admin.Key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: c.CA.Pool(), Certificates: []tls.Certificate{admin}}
	return &APIServer{
		Address: address + ":" + apiPort,
		name:    name,
		client:  &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second},
		arguments: []string{
			"--etcd-servers=" + etcdURL,
			"--etcd-prefix=/" + c.Name,
			"--bind-address=" + address,
			"--advertise-address=" + address,
			"--secure-port=" + apiPort,
			"--service-cluster-ip-range=" + services,
			"--tls-cert-file=" + serving.Certificate,
			"--tls-private-key-file=" + serving.Key,
			"--client-ca-file=" + c.CA.File(),
			"--authorization-mode=RBAC",
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + tokens.Key,
			"--service-account-signing-key-file=" + tokens.Key,
			"--kubelet-certificate-authority=" + c.CA.File(),
			"--kubelet-client-certificate=" + c.kubelet.Certificate,
			"--kubelet-client-key=" + c.kubelet.Key,
			"--kubelet-preferred-address-types=InternalIP",
			// While it waits, it serves, and says 500 to those who ask for /readyz.
			"--shutdown-delay-duration=5s",
			"--shutdown-watch-termination-grace-period=1s",
		},
	}, nil
}

// Start runs the server, and returns when it is ready.
func (s *APIServer) Start() error {
	var err error
	if s.component, err = start("kube-apiserver", s.name, s.arguments...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.component.answers(ctx, s.client, "https://"+s.Address+"/readyz")
}

// Terminate asks the server to end. From then on it is not ready, and some seconds later it is gone.
func (s *APIServer) Terminate() <-chan struct{} {
	go s.component.Stop()
	return s.component.ended
}

// Ready is what the server says of itself.
func (s *APIServer) Ready() (int, error) {
	response, err := s.client.Get("https://" + s.Address + "/readyz")
	if err != nil {
		return 0, err
	}
	response.Body.Close()
	return response.StatusCode, nil
}

// StartControllers runs kube-controller-manager with what Deployments, Services, namespaces and accounts need.
func (c *Cluster) StartControllers() error {
	file, err := c.Kubeconfig("controllers", c.User(adminName, c.admin), c.Direct())
	if err != nil {
		return err
	}
	c.controllers, err = start("kube-controller-manager", c.Name+"-controllers",
		"--kubeconfig="+file,
		"--controllers=deployment-controller,replicaset-controller,endpointslice-controller,namespace-controller,"+
			"serviceaccount-controller,root-ca-certificate-publisher-controller,garbage-collector-controller",
		"--root-ca-file="+c.CA.File(),
		"--leader-elect=false",
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
		"--secure-port=0",
	)
	return err
}

// Stop ends everything of this cluster.
func (c *Cluster) Stop() {
	if c.controllers != nil {
		c.controllers.Kill()
	}
	for _, server := range c.Servers {
		server.component.Kill()
	}
}

// Direct is the way to the first API server, with no router between.
func (c *Cluster) Direct() *api.Cluster {
	return &api.Cluster{Server: "https://" + c.Servers[0].Address, CertificateAuthority: c.CA.File()}
}

// Through is the way by a router at this address, which knows the cluster by this name.
func (c *Cluster) Through(address, name string) *api.Cluster {
	return &api.Cluster{Server: "https://" + address, TLSServerName: name, CertificateAuthority: c.CA.File()}
}

// User is one who has a client certificate.
func (c *Cluster) User(name string, pair Pair) *api.AuthInfo {
	return &api.AuthInfo{ClientCertificate: pair.Certificate, ClientKey: pair.Key}
}

// Admin is one who may do everything.
func (c *Cluster) Admin() *api.AuthInfo {
	return c.User(adminName, c.admin)
}

// Kubeconfig writes a file for this user and this way, and returns its path.
func (c *Cluster) Kubeconfig(name string, user *api.AuthInfo, way *api.Cluster) (string, error) {
	config := api.NewConfig()
	config.Clusters[c.Name] = way
	config.AuthInfos[name] = user
	config.Contexts[name] = &api.Context{Cluster: c.Name, AuthInfo: name}
	config.CurrentContext = name
	path := filepath.Join(Directory(), c.Name, name+".kubeconfig")
	return path, clientcmd.WriteToFile(*config, path)
}

// Config is for Go clients: an administrator, with no router between, and with no limit of requests.
func (c *Cluster) Config() *rest.Config {
	return &rest.Config{
		Host: c.Direct().Server,
		QPS:  -1,
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: c.CA.File(), CertFile: c.admin.Certificate, KeyFile: c.admin.Key,
		},
	}
}
