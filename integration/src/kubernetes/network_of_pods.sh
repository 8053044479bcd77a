#!/bin/sh
# A CNI plugin: a Pod gets a link to its node, and an address of the nodes' own network, for which the node answers.
set -eu
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' && exit ;;
ADD) ;;
*) exit 0 ;;
esac
inside() { nsenter --net="$CNI_NETNS" -- "$@"; }
case $0 in
*/loopback)
    inside ip link set lo up
    echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"127.0.0.1/8"}]}'
    exit
    ;;
esac
# The node is 10.77.0.N, its Pods are 10.77.(100+N).1 and so on. None is used again.
node=$(ip -4 -o addr show dev eth0 scope global | sed -n 's,.* 10\.77\.0\.\([0-9]*\)/.*,\1,p')
number=1
until mkdir -p /run/pods && mkdir "/run/pods/$number" 2>/dev/null; do number=$((number + 1)); done
address=10.77.$((100 + node)).$number link=pod$number
ip link add "$link" type veth peer name "$CNI_IFNAME" netns "$CNI_NETNS"
ip link set "$link" up
ip route add "$address/32" dev "$link"
for flag in ipv4/ip_forward "ipv4/conf/$link/proxy_arp" ipv4/conf/eth0/proxy_arp; do echo 1 >"/proc/sys/net/$flag"; done
inside ip link set "$CNI_IFNAME" up
inside ip addr add "$address/32" dev "$CNI_IFNAME"
inside ip route add default dev "$CNI_IFNAME"
echo "{\"cniVersion\":\"0.4.0\",\"ips\":[{\"version\":\"4\",\"address\":\"$address/32\"}]}"
