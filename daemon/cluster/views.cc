#include "daemon/cluster/views.h"

#include "daemon/lease/keys.h"

namespace usblease::cluster {
namespace {

std::set<std::string> hosts_of(const record::Device& device) {
  std::set<std::string> hosts;
  for (const auto& home : device.homes()) hosts.insert(home.instance().host_id());
  if (device.has_lease()) hosts.insert({device.lease().start().host_id(), device.lease().instance().host_id()});
  return hosts;
}

}  // namespace

void Views::subscribe(const std::string& host_id, const lease::State* state) {
  subscribers_.insert(host_id);
  if (state != nullptr) push_whole(host_id, *state);
}

void Views::unsubscribe(const std::string& host_id) { subscribers_.erase(host_id); }

void Views::load(const lease::State& state) {
  concerned_.clear();
  request_hosts_.clear();
  for (const auto& [name, device] : state.devices) concerned_[name] = hosts_of(device);
  for (const auto& [id, request] : state.requests) request_hosts_[id] = request.start().host_id();
  for (const std::string& host : std::set<std::string>(subscribers_)) push_whole(host, state);
}

void Views::push_whole(const std::string& host_id, const lease::State& state) {
  peer::HostView view;
  view.set_whole(true);
  for (const auto& [name, device] : state.devices) {
    if (hosts_of(device).contains(host_id)) *view.add_devices() = device;
  }
  for (const auto& [id, request] : state.requests) {
    if (request.start().host_id() == host_id) *view.add_requests() = request;
  }
  push_(host_id, view);
}

void Views::publish(const lease::State& state, const Changes& changes) {
  const std::string device_prefix = lease::kDevicePrefix;
  const std::string request_prefix = lease::kRequestPrefix;
  std::map<std::string, peer::HostView> views;
  for (const auto& [key, value] : changes) {
    if (key.rfind(device_prefix, 0) == 0) {
      const auto found = state.devices.find(key.substr(device_prefix.size()));
      if (found != state.devices.end()) add_device(found->second, views);
    } else if (key.rfind(request_prefix, 0) == 0) {
      add_request(state, key.substr(request_prefix.size()), views);
    }
  }
  for (const auto& [host, view] : views) {
    if (subscribers_.contains(host)) push_(host, view);
  }
}

// A host that it no longer concerns sees its last state.
void Views::add_device(const record::Device& device, std::map<std::string, peer::HostView>& views) {
  std::set<std::string> now = hosts_of(device);
  std::set<std::string>& before = concerned_[device.name()];
  before.insert(now.begin(), now.end());
  for (const std::string& host : before) {
    if (subscribers_.contains(host)) *views[host].add_devices() = device;
  }
  before = std::move(now);
}

void Views::add_request(const lease::State& state, const std::string& id,
                        std::map<std::string, peer::HostView>& views) {
  if (const auto found = state.requests.find(id); found != state.requests.end()) {
    request_hosts_[id] = found->second.start().host_id();
    *views[request_hosts_[id]].add_requests() = found->second;
  } else if (const auto host = request_hosts_.find(id); host != request_hosts_.end()) {
    views[host->second].add_ended_requests(id);
    request_hosts_.erase(host);
  }
}

std::string Views::host_of_request(const std::string& request_id) const {
  const auto found = request_hosts_.find(request_id);
  return found == request_hosts_.end() ? "" : found->second;
}

}  // namespace usblease::cluster
