#include "plugin/bpf/refusals.h"

#include <bpf/libbpf.h>

#include <cerrno>
#include <cstring>

#include "plugin/bpf/fence_abi.h"
#include "plugin/bpf/pinned_map.h"

namespace usblease::fence {
namespace {

const char* reason_text(std::uint32_t reason) {
  switch (reason) {
    case USBLEASE_FENCE_NO_LEASE:
      return "no lease";
    case USBLEASE_FENCE_EXPIRED:
      return "expired";
    case USBLEASE_FENCE_NOT_HOLDER:
      return "not the holder";
    case USBLEASE_FENCE_UNKNOWN_DEVICE:
      return "unknown device";
    default:
      return "unknown reason";
  }
}

}  // namespace

void Refusals::Free::operator()(ring_buffer* ring) const { ring_buffer__free(ring); }

int Refusals::taken(void* take, void* data, std::size_t size) {
  if (size < sizeof(usblease_fence_refusal)) return 0;
  usblease_fence_refusal record{};
  std::memcpy(&record, data, sizeof record);
  Refusal out;
  out.device = record.device;
  out.at_ns = record.at_ns;
  out.token = record.token;
  out.reason = reason_text(record.reason);
  out.open = record.ioctl == 0;
  out.ioctl = record.ioctl;
  out.pid = record.tgid;
  out.uid = record.uid;
  out.program.assign(record.comm, strnlen(record.comm, sizeof record.comm));
  (*static_cast<Take*>(take))(out);
  return 0;
}

Result<Refusals> Refusals::open(Take take, const std::string& root) {
  auto map = open_map(root, "refusals");
  if (!map) return tl::unexpected(map.error());
  auto kept = std::make_unique<Take>(std::move(take));
  std::unique_ptr<ring_buffer, Free> ring(ring_buffer__new(map->get(), taken, kept.get(), nullptr));
  if (ring == nullptr) return fail_errno("the ring of refusals", errno);
  return Refusals(std::move(*map), std::move(kept), std::move(ring));
}

Result<void> Refusals::drain() {
  const int count = ring_buffer__consume(ring_.get());
  return count < 0 ? Result<void>(fail_errno("the ring of refusals", -count)) : Result<void>{};
}

}  // namespace usblease::fence
