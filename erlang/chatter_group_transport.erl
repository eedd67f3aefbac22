%% SPDX-License-Identifier: Apache-2.0
%% @doc What chatter_group_srv needs to reach the servers of other nodes.
%%
%% Messages may be lost, repeated and delivered in any order: groups heal that themselves.
-module(chatter_group_transport).

-type target() :: node() | {net_id, inet:ip_address(), inet:port_number()}.

%% Called in the process that is to be told: from then on it gets messages. Called again by its
%% successor.
-callback attach() -> ok | {error, term()}.

%% The bytes in such a message; `none' if it is none, or means something to the transport alone.
-callback incoming(term()) -> {ok, binary()} | none.

%% Hands a message to each of these nodes, as far as they can be reached. Must not wait for them.
-callback send([target(), ...], binary()) -> ok.

%% The address of this node, as far as it is known.
-callback net_id() -> chatter_group_wire:net_id().

-export_type([target/0]).
