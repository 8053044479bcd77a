//! What is installed on Kubernetes.

mod live;
