%% SPDX-License-Identifier: Apache-2.0
%% @doc What chatter_group_srv needs to reach the servers of other nodes.
%%
%% Messages may be lost, repeated and delivered in any order: groups heal that themselves.
-module(chatter_group_transport).

-type target() :: node() | {net_id, inet:ip_address(), inet:port_number()}.

%% Called in the process that is to be told: from then on what comes in is a message
%% `{chatter_group, Bytes}' to it. Called again by its successor.
-callback attach() -> ok | {error, term()}.

%% Hands a message to each of these nodes, as far as they can be reached. Must not wait for them.
-callback send([target(), ...], binary()) -> ok.

%% The address of this node, as far as it is known.
-callback net_id() -> chatter_group_wire:net_id().

-export_type([target/0]).
