%% SPDX-License-Identifier: Apache-2.0
%% @doc Makes sure that there is a way to a node before a channel to it is asked for. No process.
-module(chatter_route).

-export([find/1]).

%% How long an attempt waits for a route to a node that has none at the moment.
-define(ROUTE_WAIT_MS, 500).

%% How long an attempt waits for a link that is dialled for it before it has it dialled again (the
%% other end may have refused the first as a duplicate of one that was just ending), and how often.
-define(DIAL_WAIT_MS, 1000).
-define(DIALS, 5).

%% @doc A route that is there is used; else a link is dialled, or a little patience has to do.
-spec find(node()) -> ok | {error, unreachable | timeout}.
find(Node) ->
    case chatter_nif:is_reachable(atom_to_binary(Node)) of
        true -> ok;
        false ->
            case chatter_node:links() of
                auto -> dial(Node, ?DIALS);
                static -> chatter_node:await(Node, ?ROUTE_WAIT_MS)
            end
    end.

dial(Node, Dials) ->
    case chatter_node:dial(Node) of
        ok ->
            case chatter_node:await(Node, ?DIAL_WAIT_MS) of
                {error, timeout} when Dials > 1 -> dial(Node, Dials - 1);
                Result -> Result
            end;
        {error, _} ->
            {error, unreachable}
    end.
