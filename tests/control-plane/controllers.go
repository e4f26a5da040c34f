package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
)

const (
	// What kube-controller-manager starts with by itself.
	workers             = 5
	collectors          = 20
	namespaces          = 10
	endpointsPerSlice   = 100
	endpointsPerSubset  = 1000
	namespaceResync     = 5 * time.Minute
	collectorSyncPeriod = 30 * time.Second
	// Changes of pods are told at once.
	batchPeriod = 0
)

// plane is what the controllers share.
type plane struct {
	config   *rest.Config
	client   kubernetes.Interface
	metadata metadata.Interface
	typed    informers.SharedInformerFactory
	untyped  metadatainformer.SharedInformerFactory
	running  chan struct{}
	runs     []func(context.Context)
}

// controllers runs until it is told to end.
func controllers(arguments []string) error {
	flags := flag.NewFlagSet("controllers", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "`file` that names the API server and a user of system:masters")
	authority := flags.String("root-ca-file", "", "certificate `file` that is published in every namespace")
	key := flags.String("make-key", "", "write a key that signs service account tokens to `file`, do nothing else")
	klog.InitFlags(flags)
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if *key != "" {
		return makeKey(*key)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	plane, err := newPlane(*kubeconfig)
	if err != nil {
		return err
	}
	root, err := os.ReadFile(*authority)
	if err != nil {
		return fmt.Errorf("cannot read what to publish as the root CA: %w", err)
	}
	plane.addEndpoints(ctx)
	err = errors.Join(plane.addAccounts(ctx, root), plane.addNamespaces(ctx), plane.addCollector(ctx))
	if err != nil {
		return err
	}
	plane.typed.Start(ctx.Done())
	plane.untyped.Start(ctx.Done())
	close(plane.running)
	for _, run := range plane.runs {
		go run(ctx)
	}
	<-ctx.Done()
	return nil
}

// makeKey writes the form that kube-apiserver reads as signing key and as key file alike.
func makeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	block := pem.Block{Type: "EC PRIVATE KEY", Bytes: der}
	return os.WriteFile(path, pem.EncodeToMemory(&block), 0o600)
}

func newPlane(kubeconfig string) (*plane, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("cannot use the kubeconfig %s: %w", kubeconfig, err)
	}
	// No limit: a test's ten thousand services are not to be waited for.
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &plane{
		config:   config,
		client:   client,
		metadata: meta,
		typed:    informers.NewSharedInformerFactory(client, 0),
		untyped:  metadatainformer.NewSharedInformerFactory(meta, 0),
		running:  make(chan struct{}),
	}, nil
}

func (p *plane) add(run func(context.Context)) {
	p.runs = append(p.runs, run)
}

// addEndpoints adds those that make Endpoints and EndpointSlices, and mirror hand-made Endpoints.
func (p *plane) addEndpoints(ctx context.Context) {
	core, slices := p.typed.Core().V1(), p.typed.Discovery().V1().EndpointSlices()
	endpoints := endpoint.NewEndpointController(
		ctx, core.Pods(), core.Services(), core.Endpoints(), p.client, batchPeriod)
	p.add(func(ctx context.Context) { endpoints.Run(ctx, workers) })
	sliced := endpointslice.NewController(
		ctx, core.Pods(), core.Services(), core.Nodes(), slices, endpointsPerSlice, p.client, batchPeriod)
	p.add(func(ctx context.Context) { sliced.Run(ctx, workers) })
	mirrored := endpointslicemirroring.NewController(
		ctx, core.Endpoints(), slices, core.Services(), endpointsPerSubset, p.client, batchPeriod)
	p.add(func(ctx context.Context) { mirrored.Run(ctx, workers) })
}

// addAccounts adds those that give every namespace its service account and the root CA.
func (p *plane) addAccounts(ctx context.Context, root []byte) error {
	core := p.typed.Core().V1()
	accounts, err := serviceaccount.NewServiceAccountsController(
		klog.FromContext(ctx), core.ServiceAccounts(), core.Namespaces(), p.client,
		serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return fmt.Errorf("cannot make the service account controller: %w", err)
	}
	p.add(func(ctx context.Context) { accounts.Run(ctx, 1) })
	publisher, err := rootcacertpublisher.NewPublisher(core.ConfigMaps(), core.Namespaces(), p.client, root)
	if err != nil {
		return fmt.Errorf("cannot make the root CA publisher: %w", err)
	}
	p.add(func(ctx context.Context) { publisher.Run(ctx, 1) })
	return nil
}

// addNamespaces adds the one that empties namespaces that are deleted.
func (p *plane) addNamespaces(ctx context.Context) error {
	discover := p.client.Discovery().ServerPreferredNamespacedResources
	controller := namespace.NewNamespaceController(
		ctx, p.client, p.metadata, discover, p.typed.Core().V1().Namespaces(), namespaceResync,
		v1.FinalizerKubernetes)
	p.add(func(ctx context.Context) { controller.Run(ctx, namespaces) })
	return nil
}

// addCollector adds the one that deletes what lost its owner, such as slices of deleted services.
func (p *plane) addCollector(ctx context.Context) error {
	client, err := discovery.NewDiscoveryClientForConfig(p.config)
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client))
	collector, err := garbagecollector.NewGarbageCollector(
		ctx, p.client, p.metadata, mapper, garbagecollector.DefaultIgnoredResources(),
		informerfactory.NewInformerFactory(p.typed, p.untyped), p.running)
	if err != nil {
		return fmt.Errorf("cannot make the garbage collector: %w", err)
	}
	p.add(func(ctx context.Context) { collector.Run(ctx, collectors, collectorSyncPeriod) })
	p.add(func(ctx context.Context) { collector.Sync(ctx, client, collectorSyncPeriod) })
	return nil
}
