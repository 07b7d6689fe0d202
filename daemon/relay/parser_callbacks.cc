#include "daemon/relay/parser_callbacks.h"

#include <usbredirfilter.h>

namespace usblease::relay {
namespace {

// libusbredirparser has verified direction, lengths and capabilities before it calls any of these, and its send
// functions copy what they are given.

ParserContext& context_of(void* priv) { return *static_cast<ParserContext*>(priv); }

usbredirparser* target(void* priv) { return context_of(priv).stream->forward_target(context_of(priv).side); }

template <auto Send>
void forward_bare(void* priv) {
  if (auto* to = target(priv)) Send(to);
}

template <auto Send, typename Header>
void forward_header(void* priv, Header* header) {
  if (auto* to = target(priv)) Send(to, header);
}

template <auto Send>
void forward_id(void* priv, std::uint64_t id) {
  if (auto* to = target(priv)) Send(to, id);
}

template <auto Send, typename Header>
void forward_id_header(void* priv, std::uint64_t id, Header* header) {
  if (auto* to = target(priv)) Send(to, id, header);
}

template <auto Send, typename Header>
void forward_data(void* priv, std::uint64_t id, Header* header, std::uint8_t* data, int length) {
  auto* to = target(priv);
  if (to != nullptr) Send(to, id, header, data, length);
  usbredirparser_free_packet_data(to, data);  // the first argument is not looked at
}

void forward_device_connect(void* priv, usb_redir_device_connect_header* header) {
  context_of(priv).stream->on_device({header->vendor_id, header->product_id});
  if (auto* to = target(priv)) usbredirparser_send_device_connect(to, header);
}

void forward_filter(void* priv, usbredirfilter_rule* rules, int count) {
  if (auto* to = target(priv)) usbredirparser_send_filter_filter(to, rules, count);
  usbredirfilter_free(rules);
}

// libusbredirparser acknowledges a device_disconnect by itself, on both of our sides: the endpoint has had its answer
// when the guest's arrives. That is early, but harmless: a stream carries one device only (Stream::on_device).
void swallow_disconnect_ack(void* /*priv*/) {}

int read_bytes(void* priv, std::uint8_t* data, int count) {
  const auto& context = context_of(priv);
  return context.stream->on_parser_read(context.side, {data, static_cast<std::size_t>(count)});
}

int write_bytes(void* priv, std::uint8_t* data, int count) {
  const auto& context = context_of(priv);
  return context.stream->on_parser_write(context.side, {data, static_cast<std::size_t>(count)});
}

void log_line(void* priv, int level, const char* message) {
  if (level == usbredirparser_error) context_of(priv).stream->on_parser_error(message);
}

void set_control_callbacks(usbredirparser* p) {
  p->device_connect_func = forward_device_connect;
  p->device_disconnect_func = forward_bare<usbredirparser_send_device_disconnect>;
  p->device_disconnect_ack_func = swallow_disconnect_ack;
  p->reset_func = forward_bare<usbredirparser_send_reset>;
  p->interface_info_func = forward_header<usbredirparser_send_interface_info>;
  p->ep_info_func = forward_header<usbredirparser_send_ep_info>;
  p->set_configuration_func = forward_id_header<usbredirparser_send_set_configuration>;
  p->get_configuration_func = forward_id<usbredirparser_send_get_configuration>;
  p->configuration_status_func = forward_id_header<usbredirparser_send_configuration_status>;
  p->set_alt_setting_func = forward_id_header<usbredirparser_send_set_alt_setting>;
  p->get_alt_setting_func = forward_id_header<usbredirparser_send_get_alt_setting>;
  p->alt_setting_status_func = forward_id_header<usbredirparser_send_alt_setting_status>;
  p->cancel_data_packet_func = forward_id<usbredirparser_send_cancel_data_packet>;
  p->filter_reject_func = forward_bare<usbredirparser_send_filter_reject>;
  p->filter_filter_func = forward_filter;
}

void set_stream_callbacks(usbredirparser* p) {
  p->start_iso_stream_func = forward_id_header<usbredirparser_send_start_iso_stream>;
  p->stop_iso_stream_func = forward_id_header<usbredirparser_send_stop_iso_stream>;
  p->iso_stream_status_func = forward_id_header<usbredirparser_send_iso_stream_status>;
  p->start_interrupt_receiving_func = forward_id_header<usbredirparser_send_start_interrupt_receiving>;
  p->stop_interrupt_receiving_func = forward_id_header<usbredirparser_send_stop_interrupt_receiving>;
  p->interrupt_receiving_status_func = forward_id_header<usbredirparser_send_interrupt_receiving_status>;
  p->alloc_bulk_streams_func = forward_id_header<usbredirparser_send_alloc_bulk_streams>;
  p->free_bulk_streams_func = forward_id_header<usbredirparser_send_free_bulk_streams>;
  p->bulk_streams_status_func = forward_id_header<usbredirparser_send_bulk_streams_status>;
  p->start_bulk_receiving_func = forward_id_header<usbredirparser_send_start_bulk_receiving>;
  p->stop_bulk_receiving_func = forward_id_header<usbredirparser_send_stop_bulk_receiving>;
  p->bulk_receiving_status_func = forward_id_header<usbredirparser_send_bulk_receiving_status>;
}

void set_data_callbacks(usbredirparser* p) {
  p->control_packet_func = forward_data<usbredirparser_send_control_packet>;
  p->bulk_packet_func = forward_data<usbredirparser_send_bulk_packet>;
  p->iso_packet_func = forward_data<usbredirparser_send_iso_packet>;
  p->interrupt_packet_func = forward_data<usbredirparser_send_interrupt_packet>;
  p->buffered_bulk_packet_func = forward_data<usbredirparser_send_buffered_bulk_packet>;
}

}  // namespace

ParserPtr create_forwarding_parser(ParserContext* context) {
  ParserPtr parser(usbredirparser_create());
  if (!parser) return parser;
  parser->priv = context;
  parser->log_func = log_line;
  parser->read_func = read_bytes;
  parser->write_func = write_bytes;
  set_control_callbacks(parser.get());
  set_stream_callbacks(parser.get());
  set_data_callbacks(parser.get());
  return parser;
}

}  // namespace usblease::relay
