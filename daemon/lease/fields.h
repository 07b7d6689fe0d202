// Bounds of the fields that commands and records share. Each check names the field and says what is allowed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/error.h"
#include "record.pb.h"

namespace usblease::lease {

using Checked = Result<void>;

Checked bad_field(std::string_view field, const std::string& allowed);

Checked check_device_name(std::string_view name);
Checked check_leased_name(std::string_view name);                         // of a device or a lock
Checked check_identifier(std::string_view field, std::string_view text);  // host ids, request ids
Checked check_uuid(std::string_view field, std::string_view text);
// UTF-8, because a protobuf string that is not cannot be read back from the store.
Checked check_text(std::string_view field, std::string_view text, std::size_t bytes_max);
Checked check_token(std::string_view field, std::uint64_t token);
Checked check_start(const record::Start& start);
Checked check_instance(const record::Instance& instance);
Checked check_policy(const record::Policy& policy);
Checked check_presence(const record::Presence& presence);
Checked check_host(const record::Host& host);
Checked check_certificate(const record::Certificate& certificate);
Checked check_member(const record::Member& member);
Checked check_join_token(const record::JoinToken& token);
Checked check_addresses(const google::protobuf::RepeatedPtrField<std::string>& addresses);
Checked check_store_member(const record::StoreMember& member);
Checked check_hex(std::string_view field, std::string_view text, std::size_t digits);
Checked check_priority(std::int32_t priority);
Checked check_wait(std::uint32_t wait_ms);
Checked check_duration(std::uint64_t duration_s);
// least..kDevicesPerRequestMax names, none of them twice.
Checked check_device_names(const google::protobuf::RepeatedPtrField<std::string>& names, int least);

template <typename... Rest>
Checked first_error(Checked first, Rest... rest) {
  if constexpr (sizeof...(rest) == 0) {
    return first;
  } else {
    return first ? first_error(std::move(rest)...) : first;
  }
}

// Not longer than bytes_max, and still UTF-8 if it was.
std::string cut_text(std::string text, std::size_t bytes_max);

}  // namespace usblease::lease
