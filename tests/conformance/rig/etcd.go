package rig

import (
	"errors"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const etcdURL = "http://127.0.0.1:2379"

// startEtcd runs the store of all clusters in this process.
func startEtcd() (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = filepath.Join(Directory(), "etcd")
	config.UnsafeNoFsync = true
	config.LogLevel = "error"
	config.LogOutputs = []string{filepath.Join(Directory(), "etcd.log")}
	clients, err := url.Parse(etcdURL)
	if err != nil {
		return nil, err
	}
	peers := *clients
	peers.Host = "127.0.0.1:2380"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clients}, []url.URL{*clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, err
	case <-time.After(time.Minute):
		return nil, errors.New("etcd is not ready after a minute")
	}
}
