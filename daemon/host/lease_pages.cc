#include "daemon/host/lease_pages.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "common/log.h"
#include "common/text.h"

namespace usblease::host {
namespace {

constexpr std::uint64_t kAnyToken = std::numeric_limits<std::uint64_t>::max();
constexpr std::string_view kRedir = "redir-";
constexpr std::size_t kUuidChars = 36;

// redir-UUID-DEVICE → device, guest UUID.
std::optional<std::pair<std::string, std::string>> parse_redir_name(const std::string& name) {
  if (name.rfind(kRedir, 0) != 0 || name.size() < kRedir.size() + kUuidChars + 2) return std::nullopt;
  const std::string uuid = name.substr(kRedir.size(), kUuidChars);
  const std::string device = name.substr(kRedir.size() + kUuidChars + 1);
  const auto canonical = parse_uuid(uuid);
  if (!canonical || *canonical != uuid || name[kRedir.size() + kUuidChars] != '-' || !is_device_name(device))
    return std::nullopt;
  return std::pair{device, uuid};
}

// 16 characters of a nonce are 16 bytes of the page; a shorter one is filled with zeros.
lease_page::Id id_of_nonce(const std::string& nonce) {
  lease_page::Id id{};
  std::memcpy(id.data(), nonce.data(), std::min(nonce.size(), id.size()));
  return id;
}

}  // namespace

LeasePages::LeasePages(std::string run_dir, std::function<void()> trouble_changed)
    : run_dir_(std::move(run_dir)), trouble_changed_(std::move(trouble_changed)) {}

// --- Pages of an earlier daemon ------------------------------------------------------------------------

void LeasePages::adopt() {
  if (const auto made = lease_page::make_directory(run_dir_); !made) return note(made, "", 0);
  const auto names = lease_page::list_pages(run_dir_);
  if (!names) return note(tl::unexpected(names.error()), "", 0);
  for (const std::string& name : *names) adopt_one(name);
  if (!pages_.empty())
    log::debug("lease pages of an earlier daemon are known", {{"PAGES", std::to_string(pages_.size())}});
}

void LeasePages::adopt_one(const std::string& name) {
  const auto key = parse_redir_name(name);
  if (!key) return;
  auto writer = lease_page::Writer::open(lease_page::redir_page_path(run_dir_, key->second, key->first));
  if (!writer) return note(tl::unexpected(writer.error()), key->first, 0);
  const auto at = pages_.emplace(*key, Page{std::move(*writer)}).first;
  // It grants nothing: the end of its lease was under way, or it was no page. If there is a lease, a new one is made.
  if (at->second.writer.now().state != USB_LEASE_GRANTED) close_one(at);
}

void LeasePages::keep(const std::function<bool(const std::string&, std::uint64_t)>& wanted) {
  for (auto at = pages_.begin(); at != pages_.end();) {
    const auto next = std::next(at);
    if (!wanted(at->first.first, at->second.writer.now().token)) close_one(at);
    at = next;
  }
}

// --- One lease -----------------------------------------------------------------------------------------

std::optional<LeasePages::Key> LeasePages::granting(const std::string& device, std::uint64_t token) const {
  for (auto at = pages_.lower_bound({device, ""}); at != pages_.end() && at->first.first == device; ++at) {
    const UsbLeaseSlot& now = at->second.writer.now();
    if (now.token == token && now.state == USB_LEASE_GRANTED) return at->first;
  }
  return std::nullopt;
}

LeasePages::Page* LeasePages::find(const std::string& device, std::uint64_t token) {
  const auto key = granting(device, token);
  return key ? &pages_.at(*key) : nullptr;
}

bool LeasePages::holds(const std::string& device, std::uint64_t token) const {
  const auto key = granting(device, token);
  return key && pages_.at(*key).current;
}

void LeasePages::grant(const PageGrant& grant) {
  if (granting(grant.device, grant.token)) return renew(grant.device, grant.token, grant.deadline_ns);
  note(write_grant(grant), grant.device, grant.token);
}

Result<void> LeasePages::write_grant(const PageGrant& grant) {
  const Key key{grant.device, grant.guest_uuid};
  // QEMU may still hold a page of an earlier lease of the same guest: it is told, and finds the new one by its name.
  close(grant.device, kAnyToken);
  const auto guest = lease_page::id_from_uuid(grant.guest_uuid);
  if (!guest) return tl::unexpected(guest.error());
  if (auto made = lease_page::make_directory(run_dir_); !made) return made;
  auto writer = lease_page::Writer::open(lease_page::redir_page_path(run_dir_, grant.guest_uuid, grant.device));
  if (!writer) return tl::unexpected(writer.error());
  auto written = writer->grant({grant.token, grant.deadline_ns, *guest, id_of_nonce(grant.start_nonce), 0});
  if (!written) {
    (void)writer->remove();
    return written;
  }
  pages_.emplace(key, Page{std::move(*writer)});
  return {};
}

void LeasePages::renew(const std::string& device, std::uint64_t token, std::uint64_t deadline_ns) {
  Page* const page = find(device, token);
  if (page == nullptr || deadline_ns <= page->writer.now().deadline_ns) return;
  const auto written = page->writer.renew(deadline_ns);
  page->current = written.has_value();
  note(written, device, token);
}

void LeasePages::bind(const std::string& device, std::uint64_t token, pid_t pid) {
  Page* const page = find(device, token);
  if (page == nullptr || pid <= 0) return;
  note(page->writer.bind(static_cast<std::uint32_t>(pid)), device, token);
}

void LeasePages::revoke(const std::string& device, std::uint64_t token) {
  Page* const page = find(device, token);
  if (page == nullptr) return;
  if (const auto revoked = page->writer.revoke(); !revoked) {
    note(revoked, device, token);
    close(device, token);  // whoever reads a page without a name has no lease either
  }
}

void LeasePages::close(const std::string& device, std::uint64_t through_token) {
  for (auto at = pages_.lower_bound({device, ""}); at != pages_.end() && at->first.first == device;) {
    const auto next = std::next(at);
    if (at->second.writer.now().token <= through_token) close_one(at);
    at = next;
  }
}

void LeasePages::close_one(std::map<Key, Page>::iterator at) {
  const std::string device = at->first.first;
  lease_page::Writer writer = std::move(at->second.writer);
  pages_.erase(at);
  (void)writer.revoke();  // the reason that QEMU gives; what counts is that the page goes
  if (const auto removed = writer.remove(); !removed) note(removed, device, writer.now().token);
}

void LeasePages::note(const Result<void>& written, const std::string& device, std::uint64_t token) {
  const std::string trouble = written ? "" : written.error().message;
  if (trouble == trouble_) return;
  trouble_ = trouble;
  if (written) {
    log::info("lease pages can be written again");
  } else {
    log::error("QEMU cannot be told of a lease: its device works without the qemu rung, or stops at its deadline",
               {{"DEVICE", device}, {"TOKEN", std::to_string(token)}, {"ERROR", trouble}});
  }
  if (trouble_changed_) trouble_changed_();
}

}  // namespace usblease::host
